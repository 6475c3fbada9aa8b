"""Schemas of the files in a run folder that are read back, and a check against them.

A schema is a type, None, a pattern (for a string), a tuple (of alternatives), a list (whose one item is the schema of
all items) or a dict. In a dict, keys that end with "?" are optional, and a pattern matches all other keys. Without a
pattern, other keys are ignored.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import read_text

ANY = re.compile(r".*", re.DOTALL)
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.?post|\.?dev)\d*)*")
NUMBER = (float, int)

# metrics.json ----------------------------------------------------------------------------------------------------

SIGN = {"sign": str, "where?": str, "since": int, "noticed": int, "until?": int, "says?": str}
REWIND = {"from": int, "to": int}
SCORE = {"value": (*NUMBER, None), "step": int, "provenance": dict}
EVALUATED = {"evaluated": [{"value": (*NUMBER, None), "provenance": dict}]}
TRAINED = {"higher_is_better?": bool, "ideal?": NUMBER, "monitored?": bool, "last": SCORE, "best": SCORE}
METRIC = ({**TRAINED, "evaluated?": EVALUATED["evaluated"]}, EVALUATED)
METRICS = {"health?": {"signs?": [SIGN], "rewinds?": [REWIND]}, ANY: METRIC}

# environment.json ------------------------------------------------------------------------------------------------

ENVIRONMENT = {"git_commit?": (str, None), "resumed?": [{"step": int, "overrides": [str]}]}

# Checkpoints -----------------------------------------------------------------------------------------------------

WEIGHTS = {"state_dict": {ANY: Tensor}, "global_step": int}
"""The part of a checkpoint that sampling needs."""

COUNTS = {"ready": int, "completed": int, "started?": int, "processed?": int}
PROGRESS = {"total": COUNTS, "current": COUNTS}
BATCHES = {**PROGRESS, "is_last_batch": bool}
FIT_LOOP = {
    "state_dict": {"combined_loader?": [dict]},
    "epoch_progress": PROGRESS,
    "epoch_loop.state_dict": {"_batches_that_stepped": int},
    "epoch_loop.batch_progress": BATCHES,
    "epoch_loop.scheduler_progress": PROGRESS,
    "epoch_loop.automatic_optimization.state_dict": dict,
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS, "zero_grad": PROGRESS}},
    "epoch_loop.manual_optimization.state_dict": dict,
    "epoch_loop.manual_optimization.optim_step_progress": PROGRESS,
    "epoch_loop.val_loop.state_dict": dict,
    "epoch_loop.val_loop.batch_progress": BATCHES,
}
LOSSES = {ANY: [NUMBER]}
WATCHED = {"memory": NUMBER, "values": {ANY: NUMBER}, "losses": LOSSES, "shown": {ANY: [int]}, "noticed": [str]}
HEALTH = {"noticed": [SIGN], "rewinds": [REWIND], "verdict": str, "norms": {ANY: NUMBER}, "watched": {ANY: WATCHED}}
GROUP = {"params": [int], "lr?": (*NUMBER, Tensor), "initial_lr?": (*NUMBER, Tensor)}
OPTIMIZER = {"state": {int: {ANY: (Tensor, *NUMBER, None)}}, "param_groups": [GROUP]}
CHECKPOINT = {
    **WEIGHTS,
    "pytorch-lightning_version": VERSION,
    "epoch": int,
    "loops": {"fit_loop": FIT_LOOP},
    "callbacks": {"Evaluation?": {ANY: TRAINED}, "Health?": HEALTH, "Pruning?": {"ended": bool}},
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [dict],
    "rewinds": int,
}
"""The part of a checkpoint that resuming needs."""


def read_table(path: Path, schema: Any) -> dict[str, Any]:
    """Read a JSON file; empty if there is none. Raises Damaged if it does not match the schema."""
    try:
        table = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except UserError as error:
        raise Damaged(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON: {error}") from error
    if wrong := fault(table, schema):
        raise Damaged(f"{path} was not written by ganforge: {wrong}")
    return table


def fault(value: Any, schema: Any, place: str = "") -> str:
    """How a value departs from its schema, such as "fid.step is a string, not a whole number"; empty if it does not."""
    if isinstance(schema, tuple):
        faults = [fault(value, one, place) for one in schema]
        return "" if "" in faults else faults[0]
    kind = schema if isinstance(schema, type) else type(schema)
    kind = str if isinstance(schema, re.Pattern) else kind
    fits = isinstance(value, (list, tuple) if kind is list else Mapping if kind is dict else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        return f"{place or 'it'} is {_name(type(value))}, not {_name(kind)}"
    if isinstance(schema, re.Pattern):
        return "" if schema.fullmatch(value) else f"{place or 'it'} is {value[:40]!a}"
    if isinstance(schema, list):
        return next(filter(None, (fault(one, schema[0], f"{place}[{i}]") for i, one in enumerate(value))), "")
    return _table_fault(value, schema, place) if isinstance(schema, dict) else ""


def _table_fault(table: Mapping[Any, Any], schema: Mapping[Any, Any], place: str) -> str:
    named = {key.removesuffix("?"): key for key in schema if isinstance(key, str)}
    pattern = next((key for key in schema if not isinstance(key, str)), None)
    if missing := [name for name, key in named.items() if name == key and name not in table]:
        return f"{place}.{missing[0]} is missing".lstrip(".")
    for key, value in table.items():
        inside = f"{place}.{key if str(key).isprintable() else ascii(key)}".lstrip(".")
        if key not in named and pattern is None:
            continue
        if key not in named and fault(key, pattern):
            return f"{inside} is not a valid key"
        if wrong := fault(value, schema[named.get(key, pattern)], inside):
            return wrong
    return ""


def _name(kind: type) -> str:
    names = {dict: "a table", list: "a list", str: "a string", bool: "a boolean", int: "a whole number"}
    return {**names, float: "a number", type(None): "null", Tensor: "a tensor"}.get(kind, f"a {kind.__name__}")
