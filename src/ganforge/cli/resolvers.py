"""The OmegaConf resolvers that `conf/` uses in its interpolations."""

import os
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ganforge.runtime.devices import rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import has_checkpoint
from ganforge.sweeps import sweep

MAX_PACKED = 1_000_000
"""Maximum of what is multiplied for packs of samples: channels, and samples in a pack."""


def register_resolvers() -> None:
    """Register them, replacing earlier ones."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("slurm", _slurm, replace=True)
    # cached in the config, so that a launcher's processes get the same folder, as with ${now:}
    OmegaConf.register_new_resolver("new_folder", _new_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("swept", sweep.job_name, replace=True)
    OmegaConf.register_new_resolver("record_in", _record_in, replace=True)
    OmegaConf.register_new_resolver("condition_size", _condition_size, replace=True)
    OmegaConf.register_new_resolver("packed", _packed, replace=True)
    OmegaConf.register_new_resolver("linear", partial(_schedule, "Linear"), replace=True)
    OmegaConf.register_new_resolver("cosine", partial(_schedule, "Cosine"), replace=True)


def _first(*values: Any) -> Any:
    """The first value that is not null."""
    return next((value for value in values if value is not None), None)


def _slurm(name: str) -> int:
    """Processes per node (NTASKS_PER_NODE) or nodes (NNODES) of the SLURM job; 1 outside of SLURM."""
    if name not in ("NTASKS_PER_NODE", "NNODES"):  # an untrusted config could read other variables
        raise UserError(f"slurm:{name}: must be NTASKS_PER_NODE or NNODES")
    return int(os.environ.get(f"SLURM_{name}", 1))


@cache
def _new_folder(name: str, given: str | None = None) -> str:
    """Create a new folder `name`, or `name-2`, `name-3`, ... if that exists, and return its path.

    Creating it claims it: two commands that start in the same second get two folders. `given` is returned as it is.
    Ranks above 0 create none, as their command names the folder of rank 0.
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
    """The sub-folder for Hydra's record of a new run; None if a run is resumed, so that its record stays.

    Also None for ranks above 0, which may start after rank 0 has written it.
    """
    return None if rank() > 0 or has_checkpoint(Path(folder)) else ".hydra"


def _schedule(kind: str, start: Any, end: Any, steps: Any = None) -> DictConfig:
    """The config of a schedule, such as ${cosine:2.0,0.2} or ${cosine:2.0,0.2,10000}."""
    for name, number in {"start": start, "end": end, "steps": 0 if steps is None else steps}.items():
        # OmegaConf resolves interpolations in what resolvers return: a string could hold one that reads secrets
        if isinstance(number, bool) or not isinstance(number, int if name == "steps" else int | float):
            wanted = "a whole number" if name == "steps" else "a number"
            raise UserError(f"${{{kind.lower()}:start,end,steps}}: {name}={number}: must be {wanted}")
    target = f"ganforge.schedules.{kind}"
    return OmegaConf.create({"_target_": target, "start": start, "end": end, "steps": steps})


def _packed(channels: Any, pack: Any) -> Any:
    """The channels of packed samples, or their shape, of which channels are the first number."""
    is_shape = OmegaConf.is_list(channels)
    first, *rest = channels if is_shape else [channels]
    sizes = [("data.shape" if is_shape else "data.channels", number) for number in (first, *rest)]
    for option, number in (("model.pack", pack), *sizes):
        # an untrusted config could multiply strings, or square numbers until they fill the memory
        if not isinstance(number, int) or not 1 <= number <= MAX_PACKED:
            raise UserError(f"{option}={number}: must be a whole number from 1 to {MAX_PACKED:,}")
    return OmegaConf.create([first * pack, *rest]) if is_shape else first * pack


def _condition_size(data: Any) -> int:
    """The number of classes or attributes of a `data` config. Raises UserError if it has neither."""
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
        raise UserError(
            "data.condition=identity: needs the number of identities, data.num_classes=10177 for all of CelebA"
        )
    if not size:
        raise UserError(
            "This model is conditioned on labels, which this dataset lacks. Choose data=mnist, data=celeba with "
            "data.condition=attributes data.attributes=[Smiling] or data.condition=identity data.num_classes=10177, or "
            "data=folder with data.condition=labels for the names of sub-folders"
        )
    return size


def _class_folders(data: Any) -> list[str]:
    from ganforge.data.classes import class_folders  # slow to import, and few models need it

    if OmegaConf.is_missing(data, "root"):
        raise UserError("data.root is missing: add data.root=...")
    return class_folders(Path(str(data.root)).expanduser())[1]
