"""PSNR, SSIM and LPIPS give the published values."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.metrics.pairs import LPIPS, PSNR, SSIM, luma
from ganforge.runtime.errors import UserError

NAMES = ("I03", "I04", "I06", "I08", "I19")


def pixels(file: io.BytesIO) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]


@pytest.fixture
def published(test_data: Callable[[str], Path]) -> dict:
    return json.loads(test_data("metrics_reference/reference_values.json").read_text())


@pytest.fixture
def image_pairs(test_data: Callable[[str], Path]) -> dict[str, tuple[Tensor, Tensor]]:
    with zipfile.ZipFile(test_data("metrics_reference/metric_images.zip")) as archive:

        def read(kind: str, name: str) -> Tensor:
            entry = next(entry for entry in archive.namelist() if entry.endswith(f"iqa_pairs/{kind}/{name}.png"))
            return pixels(io.BytesIO(archive.read(entry)))

        return {name: (read("dist", name), read("ref", name)) for name in NAMES}


def grey(image: Tensor) -> Tensor:
    return (image.double() * torch.tensor([0.298936, 0.587043, 0.114021]).double().view(3, 1, 1)).sum(1, True).round()


@pytest.mark.parametrize("count", [2, slow(5)])
def test_published_values(published: dict, image_pairs: dict, test_data: Callable[[str], Path], count: int) -> None:
    expected = published["image_pairs_published"]
    lpips = LPIPS(str(test_data("weights/alexnet_features.pth")))
    for name, (made, right) in list(image_pairs.items())[:count]:
        assert PSNR("rgb")(made, right).item() == pytest.approx(expected["psnr_rgb"][name], abs=0.005)
        assert SSIM("rgb")(grey(made), grey(right)).item() == pytest.approx(
            expected["ssim_matlab_gray"][name], abs=5e-5
        )
        assert lpips(made, right).item() == pytest.approx(expected["lpips_alex_v0.1"][name], abs=5e-5)


@pytest.mark.parametrize("scale", [4, slow(2), slow(3)])
def test_bicubic_on_set5_in_the_protocol_of_the_papers(
    published: dict, test_data: Callable[[str], Path], scale: int
) -> None:
    """The luma is resized, not the colours."""

    def resized(image: Tensor, height: int, width: int) -> Tensor:
        return interpolate(image, (height, width), mode="bicubic", antialias=True)

    def values() -> Iterator[tuple[float, float]]:
        with zipfile.ZipFile(test_data("sr/Set5.zip")) as archive:
            for entry in (entry for entry in archive.namelist() if entry.endswith(".png")):
                right = luma(pixels(io.BytesIO(archive.read(entry))))
                low = [side // scale for side in right.shape[-2:]]
                height, width = (side * scale for side in low)
                right = right[..., :height, :width]
                made = resized(resized(right, *low), height, width).round().clamp(0, 255)
                yield PSNR("rgb", scale)(made, right).item(), SSIM("rgb", scale)(made, right).item()

    psnr, ssim = np.mean(list(values()), axis=0)
    expected = published["bicubic_sr_published"]["Set5"][f"x{scale}"]
    assert psnr == pytest.approx(expected[0], abs=0.005)
    assert ssim == pytest.approx(expected[1], abs=5e-5)


def test_borders_are_left_out_and_equal_images_are_perfect(test_data: Callable[[str], Path]) -> None:
    image = torch.randint(256, (2, 3, 40, 50), dtype=torch.uint8)
    framed = image.clone()
    framed[..., :4, :] = 0
    assert PSNR("y", 4)(framed, image).isinf().all()
    assert PSNR("y", 0)(framed, image).isfinite().all()
    assert PSNR("y", 4)(image, image).shape == (2,)
    assert SSIM("rgb")(image, image).tolist() == pytest.approx([1, 1])
    assert LPIPS(str(test_data("weights/alexnet_features.pth")))(image, image).tolist() == [0, 0]


def test_psnr_by_hand() -> None:
    black = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert PSNR("rgb")(black, black + 1).item() == pytest.approx(20 * np.log10(255))
    assert luma(black).unique().tolist() == [16]
    assert luma(black + 255).unique().tolist() == [235]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="space=lab"):
        PSNR("lab")
    with pytest.raises(ValueError, match="border=-1"):
        SSIM("y", -1)
    with pytest.raises(UserError, match="smaller than its 11 x 11 windows"):
        SSIM("y")(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="there is no such file"):
        LPIPS("nowhere.pth")


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold AlexNet's convolutions"):
        LPIPS(str(tmp_path / "other.pth"))
