"""What `conf/` computes: the resolvers of its interpolations."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ganforge import sweeps
from ganforge.errors import UserError
from ganforge.files import has_checkpoint


def register_resolvers() -> None:
    """The resolvers that `conf/` uses."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("swept", sweeps.swept, replace=True)
    OmegaConf.register_new_resolver("record_in", _record_in, replace=True)
    OmegaConf.register_new_resolver("condition_size", _condition_size, replace=True)


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)


def _record_in(folder: str) -> str | None:
    """The sub-folder that Hydra writes a run's config to; none where the folder holds a run, whose record stays."""
    return None if has_checkpoint(Path(folder)) else ".hydra"


def _condition_size(data: Any) -> int:
    """How many classes or attributes the samples of these data have. Raises UserError where they have neither."""
    condition = data.get("condition")
    if condition not in (None, "none", "labels", "attributes", "identity"):
        raise UserError(f"data.condition={condition}: must be none, labels (folder), attributes or identity (celeba)")
    size = None if condition == "none" else data.get("num_classes")
    if condition == "attributes":
        names = data.get("attributes") or ()
        size = len([names] if isinstance(names, str) else names)
    elif condition == "labels":
        size = size or len(data.get("classes") or _class_folders(data))
    elif condition == "identity" and not size:
        raise UserError("data.condition=identity: say of how many, all of CelebA are data.num_classes=10177")
    if not size:
        raise UserError(
            "This model is conditioned on labels, which these data do not have. Choose others, such as data=mnist, or "
            "make some: data=celeba data.condition=attributes data.attributes=[Smiling], or data.condition=identity "
            "data.num_classes=10177; data=folder data.condition=labels, which are the names of sub-folders"
        )
    return size


def _class_folders(data: Any) -> list[str]:
    from ganforge.data.classes import class_folders  # slow to import, and for few models only

    if OmegaConf.is_missing(data, "root"):
        raise UserError("data.root has to be given: data.root=...")
    return class_folders(Path(str(data.root)).expanduser())[1]
