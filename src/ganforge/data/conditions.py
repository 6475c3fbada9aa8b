"""What a person asks a conditional generator for, as the condition that it is given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganforge.runtime.errors import UserError
from ganforge.runtime.text import join_names


def of_classes(labels: Sequence[Any] | None, classes: int, names: Sequence[str] = ()) -> Tensor:
    """Integer labels (N,), of numbers or of the `names` of the classes; by default of all classes, or of ten that are
    evenly spread. A number is a name where names are numbers. Raises UserError.
    """
    if labels is None:
        return torch.linspace(0, classes - 1, min(classes, 10)).round().long()
    counts = not any(name.isdecimal() for name in names)
    found = [_number(label, classes if counts else 0, names) for label in labels]
    if None in found or not found:
        known = [join_names(names)] if names else []
        known += [f"numbers from 0 to {classes - 1}"] if counts else []
        wrong = labels[found.index(None)] if found else "none"
        raise UserError(f"labels: must be {', or '.join(known)}, not {wrong}")
    return torch.tensor(found)


def _number(label: Any, classes: int, names: Sequence[str]) -> int | None:
    if type(label) in (int, str) and str(label) in names:
        return names.index(str(label))
    return label if type(label) is int and 0 <= label < classes else None


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
