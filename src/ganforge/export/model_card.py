"""What a person should know of a generator that is handed over."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.utils import get_class
from omegaconf import DictConfig

from ganforge.experiment.trust import validate_untrusted
from ganforge.export.interface import Input, Interface
from ganforge.models.gan import GAN
from ganforge.runs.folder import versions
from ganforge.runs.schemas import ENVIRONMENT, METRICS, read_table

COMMIT = re.compile("[0-9a-f]{7,64}")


class Subject(NamedTuple):
    """What a card is about. `difference` is to PyTorch, `shape` that of a sample."""

    file: str
    run: Path
    checkpoint: str
    step: int
    difference: float
    digest: str
    shape: list[int]


def model_card(subject: Subject, record: DictConfig, model: GAN, interface: Interface) -> str:
    """The card, in Markdown."""
    data = get_class(validate_untrusted(record.data)._target_)
    parts = [f"# {type(model).__name__} trained on {data.__name__}", _facts(subject, record, model)]
    parts += ["## Use", *_use(subject, interface)]
    parts += ["## Inputs and output", _table(Input._fields, [_input(entry) for entry in interface.inputs])]
    parts += [_output(subject, interface, model)]
    parts += ["## Measured", *_measured(read_table(subject.run / "metrics.json", METRICS), subject.step)]
    parts += ["## Generator", _fenced(yaml.safe_dump(interface.generator, sort_keys=False).strip())]
    parts += ["## Licence of the data", data.license_note]  # type: ignore[attr-defined]
    parts += ["## Versions", ", ".join(f"{name} {number}" for name, number in versions().items())]
    return "\n\n".join(parts) + "\n"


def _facts(subject: Subject, record: DictConfig, model: GAN) -> str:
    commit = read_table(subject.run / "environment.json", ENVIRONMENT).get("git_commit") or ""
    return _table(
        ("", ""),
        [
            ("file", f"`{subject.file}`, sha256 {subject.digest}"),
            ("checkpoint", f"{escaped(subject.checkpoint)}, after {subject.step} steps"),
            ("weights", "the latest" if model.average is None else "moving average"),
            ("seed", escaped(record.seed)),
            ("git commit of the training", commit if COMMIT.fullmatch(commit) else "unknown"),
            ("difference to PyTorch", f"{subject.difference:.2g}, the largest of two trials"),
        ],
    )


def _use(subject: Subject, interface: Interface) -> list[str]:
    labels = f", labels={interface.attributes[:1]}" if interface.attributes else ""
    labels = f", labels={(interface.names or [*range(interface.classes)])[:2]}" if interface.classes else labels
    call = "images" if interface.channels else f"16, seed=0{labels}"
    made = "made" if interface.channels else interface.output
    code = [f'generator = ganforge.load_generator("{subject.file}")', f"{made} = generator({call})"]
    found = ["With ganforge:", "```python\nimport ganforge\n\n" + "\n".join(code) + "\n```"]
    if interface.channels:
        found.append(f"`images` is a tensor (N, {interface.channels}, h, w) in [-1, 1].")
    if subject.file.endswith(".onnx"):
        feed = ", ".join(f'"{entry.name}": {entry.name}' for entry in interface.inputs)
        code = ["import onnxruntime", f'session = onnxruntime.InferenceSession("{subject.file}")']
        code += [f"{interface.output} = session.run(None, {{{feed}}})[0]"]
        found += ["With onnxruntime alone, from arrays as below:", "```python\n" + "\n".join(code) + "\n```"]
    if subject.file.endswith(".pt2"):
        found.append("Reading a `.pt2` can run code: load those of people you trust.")
    return found


def _input(entry: Input) -> tuple[str, ...]:
    return f"`{entry.name}`", f"({', '.join(map(str, entry.shape))})", entry.dtype, escaped(entry.values)


def _output(subject: Subject, interface: Interface, model: GAN) -> str:
    channels, *sides = subject.shape
    if interface.output == "points":
        return f"The output is `points`, float32 (N, {channels})."
    note = ""
    if interface.channels:
        scale = model.generator.scale
        sides = ["H", "W"] if scale == 1 else [f"{scale} H", f"{scale} W"]  # type: ignore[list-item]
        note = " H and W are free"
        if interface.multiple > 1:
            least = f", above {interface.multiple}" if subject.file.endswith(".pt2") else ""
            note += f"{least}; inside, the image is padded to multiples of {interface.multiple} pixels"
        note += "."
    shape = ", ".join(map(str, ("N", channels, *sides)))
    return f"The output is `images`, float32 ({shape}) in [-1, 1]; clip what lies beyond.{note}"


def _measured(metrics: Mapping[str, Any], step: int) -> Iterator[str]:
    """Tables of what was measured last and at best while training, and what evaluate.py measured of these weights, each
    under how it was measured."""
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for name, score in metrics.items():
        entries = [(kind, score[kind]) for kind in ("last", "best") if kind in score]
        if entries and score["last"] == score["best"]:
            entries = [("last and best", score["last"])]
        evaluated = [entry for entry in score.get("evaluated", []) if entry["provenance"].get("step") == step]
        entries += [("evaluated", entry) for entry in evaluated]
        for kind, entry in entries if "/" not in name else ():  # not those of each class or set
            value = "no number" if entry["value"] is None else f"{entry['value']:.6g}"
            row = (escaped(name), kind, value, entry.get("step", step))
            tables.setdefault(_how(entry["provenance"]), []).append(row)
    for how, rows in tables.items():
        yield f"{how}:"
        yield _table(("metric", "", "value", "step"), rows)
    if not tables:
        yield "Nothing was."


def _how(provenance: Mapping[str, Any]) -> str:
    """Without what tells of somebody's folders."""
    kept = {
        key: [Path(name).name for name in value] if key == "sets" else value
        for key, value in provenance.items()
        if key not in ("versions", "run", "checkpoint", "step") and value is not None
    }
    return "; ".join(escaped(f"{key.replace('_', ' ')} {value}") for key, value in kept.items())


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _fenced(text: str) -> str:
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}yaml\n{text}\n{fence}"


def escaped(text: Any) -> str:
    """What a run folder says, as Markdown that shows it and means nothing by it."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    line = re.sub(r"([\\`*\[\]<>|~$&!#])|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", line)
    return re.sub(r"(?i)(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u200b", line)  # addresses would become links
