"""Content losses: how far a made image is from the right one, in pixels or in a network's features.

To add one: a class here, a line in `conf/content/`.
"""

from functools import cached_property
from typing import ClassVar

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ganforge.runtime.downloads import weights_file
from ganforge.runtime.errors import UserError


class Content:
    """Called as `(fake, real) -> scalar` on images (N, C, H, W) in [-1, 1].

    No module of PyTorch, so that a network in it stays out of checkpoints and optimizers.
    """

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self) -> None:
        """Get what training needs, such as weights. Raises UserError where it cannot be had."""


class Pixels(Content):
    """Mean difference of pixels: absolute with power 1 (pix2pix, Isola et al., 2017), squared with power 2."""

    def __init__(self, power: int = 2):
        if power not in (1, 2):
            raise ValueError(f"power={power}: must be 1 (absolute) or 2 (squared)")
        self.power = power

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        return l1_loss(fake, real) if self.power == 1 else mse_loss(fake, real)


class VGG(Content):
    """Mean squared difference of the features that the first `layers` of VGG make, divided by `divisor` (Ledig et al.,
    2017, who scale them by 1/12.75: the loss by 0.006).

    Layers are those of torchvision's `features`. `weights` is a file of torchvision's network, all of it or its
    features only; null: torchvision's are fetched.
    """

    name: ClassVar[str]
    most: ClassVar[int]

    def __init__(self, layers: int, weights: str | None = None, divisor: float = 12.75):
        if not 1 <= layers <= self.most or divisor <= 0:
            raise ValueError(f"layers={layers}, divisor={divisor}: must be from 1 to {self.most}, and above 0")
        self.layers = layers
        self.weights = weights
        self.divisor = divisor
        colour = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet's mean and deviation
        self.mean, self.std = colour.view(2, 1, 3, 1, 1)

    def prepare(self) -> None:
        _ = self.network

    @cached_property
    def network(self) -> nn.Module:
        url = torchvision.models.get_model_weights(self.name).DEFAULT.url
        file = weights_file(self.weights, url, "content.weights")
        with torch.device("meta"):  # drawing weights for all of VGG takes seconds
            network = torchvision.models.get_model(self.name, weights=None).features[: self.layers]
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
            state = {name.removeprefix("features."): value for name, value in state.items()}
            network.load_state_dict({name: state[name].float() for name in network.state_dict()}, assign=True)
        except Exception as error:  # whatever is wrong with it
            raise UserError(f"content.weights={file} does not hold the features of {self.name}") from error
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            right = self.features(real)
        return mse_loss(self.features(fake), right) / self.divisor**2

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [-1, 1] to feature maps."""
        if self.mean.device != images.device:
            self.network.to(images.device)
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        normal = ((images.float() + 1) / 2 - self.mean) / self.std
        return self.network(normal.contiguous(memory_format=torch.channels_last))


class VGG19(VGG):
    """Sixteen convolutions (Simonyan and Zisserman, 2015)."""

    name = "vgg19"
    most = 36


class VGG16(VGG):
    """Thirteen convolutions (Simonyan and Zisserman, 2015)."""

    name = "vgg16"
    most = 30
