"""What `conf/` computes: the resolvers of its interpolations."""

import os
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ganforge.runtime.devices import rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import has_checkpoint
from ganforge.sweeps import sweep


def register_resolvers() -> None:
    """The resolvers that `conf/` uses."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("slurm", _slurm, replace=True)
    # the cache goes with a config to the processes of a launcher, as that of ${now:} does
    OmegaConf.register_new_resolver("new_folder", _new_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("swept", sweep.job_name, replace=True)
    OmegaConf.register_new_resolver("record_in", _record_in, replace=True)
    OmegaConf.register_new_resolver("condition_size", _condition_size, replace=True)


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)


def _slurm(name: str) -> int:
    """How many processes a node has, or how many nodes there are; 1 outside of SLURM."""
    if name not in ("NTASKS_PER_NODE", "NNODES"):  # a record of a stranger's could read other variables
        raise UserError(f"slurm:{name}: must be NTASKS_PER_NODE or NNODES")
    return int(os.environ.get(f"SLURM_{name}", 1))


@cache
def _new_folder(name: str, given: str | None = None) -> str:
    """A folder of this name that was not there before: `name`, or where that is taken `name-2`, `name-3` ...

    It is made at once, so that of several commands that start in the same second each has its own. `given` is taken as
    it is. Ranks that another process started are given the folder of the first one, and make none.
    """
    if given is not None or rank() > 0:
        return given or name
    for number in count(1):
        folder = Path(name if number == 1 else f"{name}-{number}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder)
    raise AssertionError  # never reached


def _record_in(folder: str) -> str | None:
    """The sub-folder that Hydra writes a run's config to; none where the folder holds a run, whose record stays, and
    for ranks that may start after the first one has completed it."""
    return None if rank() > 0 or has_checkpoint(Path(folder)) else ".hydra"


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
        raise UserError("data.root is missing: add data.root=...")
    return class_folders(Path(str(data.root)).expanduser())[1]
