"""Labels that a user types, as the condition that a generator takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganforge.runtime.errors import UserError
from ganforge.runtime.text import join_names


def class_labels(labels: Sequence[Any] | None, classes: int, names: Sequence[str] = ()) -> Tensor:
    """Integer labels (N,) from numbers or class `names`; None gives all classes, or ten evenly spaced ones.

    Where the names of the classes are numbers, a number is a name. Raises UserError for an unknown label.
    """
    if labels is None:
        return torch.linspace(0, classes - 1, min(classes, 10)).round().long()
    accepts_numbers = not any(name.isdecimal() for name in names)
    indices = [_class_index(label, classes if accepts_numbers else 0, names) for label in labels]
    if None in indices or not indices:
        valid = [join_names(names)] if names else []
        valid += [f"numbers from 0 to {classes - 1}"] if accepts_numbers else []
        wrong = labels[indices.index(None)] if indices else "[]"
        raise UserError(f"labels={wrong}: must be {', or '.join(valid)}")
    return torch.tensor(indices)


def _class_index(label: Any, classes: int, names: Sequence[str]) -> int | None:
    if type(label) in (int, str) and str(label) in names:
        return names.index(str(label))
    return label if type(label) is int and 0 <= label < classes else None


def attribute_vectors(labels: Sequence[Any] | None, attributes: Sequence[str]) -> Tensor:
    """Vectors (N, K) of 0 and 1 from `Smiling`, `Smiling+Male` (both) or `none`.

    None gives a vector without attributes and one for each attribute. Raises UserError for an unknown attribute.
    """
    if labels is None:
        return torch.cat([torch.zeros(1, len(attributes)), torch.eye(len(attributes))])
    wanted = [[] if label == "none" else str(label).replace(" ", "").split("+") for label in labels]
    unknown = [name for names in wanted for name in names if name not in attributes]
    if unknown or not wanted:
        valid, wrong = ", ".join(attributes), (unknown or ["[]"])[0]
        raise UserError(f"labels={wrong}: must be {valid}, several joined by + (A+B), or none")
    return torch.tensor([[float(name in names) for name in attributes] for names in wanted])
