"""What a person asks a conditional generator for, as the condition that it is given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganforge.errors import UserError


def of_classes(labels: Sequence[Any] | None, classes: int) -> Tensor:
    """Integer labels (N,); by default of all classes, or of ten that are evenly spread. Raises UserError."""
    if labels is None:
        return torch.linspace(0, classes - 1, min(classes, 10)).round().long()
    unknown = [label for label in labels if type(label) is not int or not 0 <= label < classes]
    if unknown or not labels:
        raise UserError(f"labels: must be numbers from 0 to {classes - 1}, not {unknown[0] if unknown else 'none'}")
    return torch.tensor(labels)


def of_attributes(labels: Sequence[Any] | None, attributes: Sequence[str]) -> Tensor:
    """0 or 1 (N, K) of `Smiling`, or `Smiling+Male` for both, or `none`; by default none, and each alone.

    Raises UserError.
    """
    if labels is None:
        return torch.cat([torch.zeros(1, len(attributes)), torch.eye(len(attributes))])
    wanted = [[] if label == "none" else str(label).replace(" ", "").split("+") for label in labels]
    unknown = [name for names in wanted for name in names if name not in attributes]
    if unknown or not wanted:
        known, wrong = ", ".join(attributes), (unknown or ["nothing"])[0]
        raise UserError(f"labels: this run knows {known}, several as in A+B, or none, not {wrong}")
    return torch.tensor([[float(name in names) for name in attributes] for names in wanted])
