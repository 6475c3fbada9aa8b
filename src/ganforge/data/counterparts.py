"""Matches low-quality images to their high-quality counterparts."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ganforge.data.ragged import Loaded, RaggedImages
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)


def match_images(
    high: Loaded, low: Loaded, high_path: Path, low_path: Path, on_error: str
) -> tuple[RaggedImages, RaggedImages]:
    """The high-quality images that have a counterpart, and the counterparts in the same order.

    Raises UserError for images without a counterpart unless on_error="skip", or if all are without.
    """
    positions = match_names(high.names, low.names)
    unmatched = [name for name, i in zip(high.names, positions, strict=True) if i is None]
    if unmatched and (on_error == "stop" or len(unmatched) == len(high.names)):
        raise UserError(
            f"{low_path} has no counterpart for {len(unmatched)} images of {high_path}, such as {unmatched[0]}"
        )
    if unmatched:
        log.warning("%d images of %s have no counterpart and are left out.", len(unmatched), high_path)
    matched = torch.tensor([i for i, position in enumerate(positions) if position is not None])
    return high.images.select(matched), low.images.select(torch.tensor([i for i in positions if i is not None]))


def match_names(names: Sequence[str], low_names: Sequence[str]) -> list[int | None]:
    """The index of the counterpart of each image, or None.

    Counterparts have the same name, with the scale at its end as in DIV2K (0001x4.png) if no name is the same. Raises
    UserError for ambiguous names.
    """
    stems = [name.rpartition(".")[0] for name in names]
    low_stems = [name.rpartition(".")[0] for name in low_names]
    if not set(stems) & set(low_stems):
        low_stems = [re.sub(r"x\d+$", "", stem) for stem in low_stems]
    for candidates in (stems, low_stems):
        stem, count = Counter(candidates).most_common(1)[0]
        if count > 1:
            raise UserError(f"data.low_root: {count} images are called {stem}, so their counterparts are ambiguous")
    index = {stem: i for i, stem in enumerate(low_stems)}
    return [index.get(stem) for stem in stems]


def scale_between(high: RaggedImages, low: RaggedImages, expected: int | None, path: Path) -> int:
    """The ratio of the sides of images and counterparts. Raises UserError if it varies or is not the expected one."""
    scale = expected or max(1, int(high.sizes[0, 0] // low.sizes[0, 0]))
    mismatched = (low.sizes * scale != high.sizes).any(1).sum().item()
    if mismatched:
        raise UserError(f"{mismatched} images of {path} are not {scale} times as large as their counterparts")
    return scale
