"""Style-based generator of StyleGAN2 (Karras et al., 2020), in plain torch."""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate

from ganforge.networks.equalized import GAIN, Linear, LowPass, activate
from ganforge.networks.layers import Embedding, Layer, map_sizes

W_AVERAGE_DECAY = 0.998
"""Per batch of latents."""


def channel_counts(image_size: int, width: int, max_width: int) -> list[int]:
    """Channels at each resolution: `width` at the finest, doubled at each coarser one up to `max_width`."""
    if min(width, max_width) < 1:
        raise ValueError(f"width={width}, max_width={max_width}: must be at least 1")
    return [min(width * (image_size // side), max_width) for side in map_sizes(image_size)]


def in_float32(features: Tensor) -> AbstractContextManager[object]:
    """No autocast: bfloat16 is too coarse for styles, demodulation and the statistics of a batch."""
    kind = features.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def unit_second_moment(features: Tensor) -> Tensor:
    return features * (features.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """From latents (N, latent_size), conditions or both to w (N, w_size), by `layers` layers at 1/100 of the rate."""

    def __init__(self, latent_size: int, w_size: int, layers: int, condition_size: int | None = None):
        super().__init__()
        if min(layers, w_size) < 1:
            raise ValueError(f"mapping_layers={layers}, w_size={w_size}: must be at least 1")
        self.embedding = None if condition_size is None else Embedding(condition_size, w_size)
        inputs = latent_size + (0 if condition_size is None else w_size)
        sizes = [inputs, *[w_size] * layers]
        self.layers = nn.ModuleList(Linear(i, o, rate=0.01, gain=GAIN) for i, o in pairwise(sizes))

    def forward(self, latent: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        weight = next(self.parameters())
        with in_float32(weight):
            parts = [] if latent is None else [latent.to(weight.dtype)]
            if self.embedding is not None:
                parts.append(self.embedding(condition))
            features = torch.cat([unit_second_moment(part) for part in parts], dim=1)
            for layer in self.layers:
                features = activate(layer(features))
        return features


class ModulatedConv(nn.Module):
    """A 3x3 convolution whose weights are scaled per sample: input channels by the style, an affine function of w, and
    output channels to norm `GAIN` (demodulation). `upsample` doubles the side of the maps.

    Scaling maps before and after one convolution of the whole batch is equivalent, up to twice as fast on CPUs as a
    grouped convolution with weights per sample, and needs no memory for those.
    """

    def __init__(self, w_size: int, in_channels: int, out_channels: int, upsample: bool = False):
        super().__init__()
        self.style = Linear(w_size, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.weight_gain = 1 / sqrt(in_channels * 9)
        self.low_pass = LowPass(padding=1, gain=4.0) if upsample else None  # of 4 upsampled pixels, 3 are zeros

    def forward(self, maps: Tensor, w: Tensor, offset: Tensor) -> Tensor:
        """From maps (N or 1, C, H, W) to convolved ones, plus an `offset` that broadcasts."""
        with in_float32(w):
            weight = self.weight * self.weight_gain
            style = self.style(w)
            scale = GAIN * (style.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        maps = maps * style[:, :, None, None].to(maps.dtype)
        if self.low_pass is None:
            maps = conv2d(maps, weight, padding="same")
        else:
            maps = self.low_pass(conv_transpose2d(maps, weight.transpose(0, 1), stride=2))
        return torch.addcmul(offset.to(maps.dtype), maps, scale[:, :, None, None].to(maps.dtype))


class StyleLayer(nn.Module):
    """A modulated convolution, noise, bias and activation. The noise is drawn in training, and constant otherwise."""

    noise: Tensor

    def __init__(self, w_size: int, in_channels: int, out_channels: int, side: int, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv(w_size, in_channels, out_channels, upsample)
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, side, side))

    def forward(self, maps: Tensor, w: Tensor) -> Tensor:
        noise = self.noise
        if self.training:
            noise = torch.randn(len(w), *noise.shape[1:], device=noise.device, dtype=noise.dtype)
        maps = self.conv(maps, w, GAIN * self.noise_strength * noise)
        return activate(maps + GAIN * self.bias.to(maps.dtype))


class ToImage(nn.Module):
    """Maps to images (N, channels, H, W), by a modulated 1x1 convolution without demodulation.

    With so few output channels, weights per sample are cheaper than scaling the maps.
    """

    def __init__(self, w_size: int, in_channels: int, channels: int):
        super().__init__()
        self.style = Linear(w_size, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.weight_gain = 1 / sqrt(in_channels)

    def forward(self, maps: Tensor, w: Tensor) -> Tensor:
        with in_float32(w):
            weight = self.weight * self.weight_gain * self.style(w)[:, None]
        images = torch.einsum("nchw,noc->nohw", maps, weight.to(maps.dtype))
        return images.to(w.dtype) + self.bias


class Synthesis(nn.Module):
    """From w (N, w_size), or one for each layer (N, num_layers, w_size), to images.

    Two layers at each resolution (one at the coarsest) refine a learnt constant map. Each resolution adds an image to
    the upsampled sum of the coarser ones. `output` bounds that sum, if given.
    """

    def __init__(
        self, image_size: int, channels: int, w_size: int, width: int, max_width: int, output: Layer | None = None
    ):
        super().__init__()
        self.sides = map_sizes(image_size)
        widths = channel_counts(image_size, width, max_width)
        self.constant = nn.Parameter(torch.randn(1, widths[0], self.sides[0], self.sides[0]))
        self.layers = nn.ModuleList([StyleLayer(w_size, widths[0], widths[0], self.sides[0])])
        for before, after, side in zip(widths, widths[1:], self.sides[1:], strict=False):
            self.layers.append(StyleLayer(w_size, before, after, side, upsample=True))
            self.layers.append(StyleLayer(w_size, after, after, side))
        self.to_image = nn.ModuleList(ToImage(w_size, features, channels) for features in widths)
        self.output = nn.Identity() if output is None else output()
        self.num_layers = len(self.layers) + 1
        """Of the layers with a style of their own. The image layer of each resolution but the last shares that of the
        next layer."""

    def forward(self, w: Tensor) -> Tensor:
        styles = (w if w.ndim == 3 else w[:, None].expand(-1, self.num_layers, -1)).unbind(1)
        maps = self.layers[0](self.constant, styles[0])
        image = self.to_image[0](maps, styles[1])
        for i, to_image in enumerate(self.to_image[1:]):
            first = 2 * i + 1
            maps = self.layers[first](maps, styles[first])
            maps = self.layers[first + 1](maps, styles[first + 1])
            # bilinear interpolation is the filter of LowPass, apart from the border
            image = interpolate(image, scale_factor=2.0, mode="bilinear") + to_image(maps, styles[first + 2])
        return self.output(image)


class Generator(nn.Module):
    """From a latent (N, latent_size), and a condition if `condition_size` is given, to images in about [-1, 1].

    `mapping` makes w of the latent, `synthesis` images of w. In training, a second latent determines the finer layers
    of a fraction `style_mixing` of the samples, and `w_avg` follows the mean of w. In evaluation there is neither
    mixing nor drawn noise, and w is `truncation` times as far from `w_avg`. `output` bounds the images (nn.Tanh); None,
    as in the paper, leaves them unbounded.
    """

    w_avg: Tensor

    def __init__(
        self,
        latent_size: int,
        image_size: int,
        channels: int,
        condition_size: int | None = None,
        width: int = 32,
        max_width: int = 512,
        w_size: int = 512,
        mapping_layers: int = 2,
        style_mixing: float = 0.9,
        output: Layer | None = None,
    ):
        super().__init__()
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing={style_mixing}: must be a fraction of the samples, from 0 to 1")
        self.condition_size = condition_size
        self.style_mixing = style_mixing
        self.truncation = 1.0
        self.mapping = Mapping(latent_size, w_size, mapping_layers, condition_size)
        self.synthesis = Synthesis(image_size, channels, w_size, width, max_width, output)
        self.register_buffer("w_avg", torch.zeros(w_size))
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        w = self.mapping(latent, condition)
        if self.training:
            with torch.no_grad():
                self.w_avg.lerp_(w.mean(0), 1 - W_AVERAGE_DECAY)
            return self.synthesis(self.mixed(w, latent, condition))
        return self.synthesis(self.truncated(w))

    def mixed(self, w: Tensor, latent: Tensor, condition: Tensor | None) -> Tensor:
        """The styles (N, num_layers, w_size) of a batch: from a random layer on, those of the batch's other latents."""
        count, layers = len(w), self.synthesis.num_layers
        styles = w[:, None].expand(-1, layers, -1)
        if self.style_mixing == 0:
            return styles
        neighbours = latent.roll(1, 0)  # distributed as model.latent says, and independent of each sample's own latent
        others = self.mapping(neighbours, condition)[:, None]
        start = torch.randint(1, layers, (count,), device=w.device)
        start = torch.where(torch.rand(count, device=w.device) < self.style_mixing, start, layers)
        return torch.where(torch.arange(layers, device=w.device)[:, None] >= start[:, None, None], others, styles)

    def truncated(self, w: Tensor) -> Tensor:
        """Trade diversity for quality; see `truncation`."""
        return w if self.truncation == 1 else torch.lerp(self.w_avg, w, self.truncation)

    def layer_groups(self) -> dict[str, range]:
        """The layers of the coarse, middle and fine third of the resolutions."""
        count = len(self.synthesis.sides)
        ends = [2 * -(-count * i // 3) - 1 for i in (1, 2)]
        bounds = [0, *ends, self.synthesis.num_layers]
        return {name: range(*bounds[i : i + 2]) for i, name in enumerate(("coarse", "middle", "fine"))}
