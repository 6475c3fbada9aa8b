"""Content losses: the distance between a generated image and its ground truth, in pixels or in features.

To add one: a class here and a one-line file in `conf/content/`.
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
    """Maps fake and real images (N, C, H, W) in [-1, 1] to a scalar.

    Not an nn.Module, so that its network stays out of checkpoints and optimizers.
    """

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self) -> None:
        """Load what training needs, such as weights. Raises UserError if that fails."""


class Pixels(Content):
    """Mean absolute (power 1; pix2pix, Isola et al., 2017) or squared (power 2) difference of pixels."""

    def __init__(self, power: int = 2):
        if power not in (1, 2):
            raise ValueError(f"power={power}: must be 1 (absolute) or 2 (squared)")
        self.power = power

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        return l1_loss(fake, real) if self.power == 1 else mse_loss(fake, real)


class VGG(Content):
    """Mean squared difference of VGG features divided by `divisor` (Ledig et al., 2017).

    The features are the output of the first `layers` layers of torchvision's `features`. The paper scales them by
    1/12.75, which scales the loss by 0.006. `weights` is torchvision's file of the network, or of its `features` alone;
    None downloads it.
    """

    name: ClassVar[str]
    max_layers: ClassVar[int]

    def __init__(self, layers: int, weights: str | None = None, divisor: float = 12.75):
        if not 1 <= layers <= self.max_layers or divisor <= 0:
            raise ValueError(f"layers={layers}, divisor={divisor}: must be from 1 to {self.max_layers}, and above 0")
        self.layers = layers
        self.weights = weights
        self.divisor = divisor
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # mean and standard deviation
        self.mean, self.std = imagenet.view(2, 1, 3, 1, 1)

    def prepare(self) -> None:
        _ = self.network

    @cached_property
    def network(self) -> nn.Module:
        url = torchvision.models.get_model_weights(self.name).DEFAULT.url
        file = weights_file(self.weights, url, "content.weights")
        with torch.device("meta"):  # initializing all of VGG takes seconds
            network = torchvision.models.get_model(self.name, weights=None).features[: self.layers]
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
            state = {name.removeprefix("features."): value for name, value in state.items()}
            network.load_state_dict({name: state[name].float() for name in network.state_dict()}, assign=True)
        except Exception as error:  # a damaged or different file raises errors of many kinds
            raise UserError(f"content.weights={file} does not hold the features of {self.name}") from error
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def __call__(self, fake: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.features(real)
        return mse_loss(self.features(fake), target) / self.divisor**2

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [-1, 1] to feature maps."""
        if self.mean.device != images.device:
            self.network.to(images.device)
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        normalized = ((images.float() + 1) / 2 - self.mean) / self.std
        return self.network(normalized.contiguous(memory_format=torch.channels_last))


class VGG19(VGG):
    """Sixteen convolutions (Simonyan and Zisserman, 2015)."""

    name = "vgg19"
    max_layers = 36


class VGG16(VGG):
    """Thirteen convolutions (Simonyan and Zisserman, 2015)."""

    name = "vgg16"
    max_layers = 30
