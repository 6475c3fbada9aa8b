"""The model card of an exported generator, in Markdown."""

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


class ExportedFile(NamedTuple):
    """The file that a card describes: `difference` is the largest to PyTorch's samples, `shape` that of one sample."""

    file: str
    run: Path
    checkpoint: str
    step: int
    difference: float
    digest: str
    shape: list[int]


def model_card(exported: ExportedFile, record: DictConfig, model: GAN, interface: Interface) -> str:
    """The whole card. Everything that comes from the run folder is escaped."""
    data = get_class(validate_untrusted(record.data)._target_)
    sections = [f"# {type(model).__name__} trained on {data.__name__}", _facts(exported, record, model)]
    sections += ["## Use", *_use(exported, interface)]
    sections += ["## Inputs and output", _table(Input._fields, [_input(entry) for entry in interface.inputs])]
    sections += [_output(exported, interface, model)]
    sections += ["## Metrics", *_measured(read_table(exported.run / "metrics.json", METRICS), exported.step)]
    sections += ["## Generator", _fenced(yaml.safe_dump(interface.generator, sort_keys=False).strip())]
    sections += ["## Licence of the data", data.license_note]  # type: ignore[attr-defined]
    sections += ["## Versions", ", ".join(f"{name} {number}" for name, number in versions().items())]
    return "\n\n".join(sections) + "\n"


def _facts(exported: ExportedFile, record: DictConfig, model: GAN) -> str:
    commit = read_table(exported.run / "environment.json", ENVIRONMENT).get("git_commit") or ""
    return _table(
        ("", ""),
        [
            ("file", f"`{exported.file}`, sha256 {exported.digest}"),
            ("checkpoint", f"{escaped(exported.checkpoint)}, after {exported.step} steps"),
            ("weights", "raw weights (no EMA)" if model.average is None else "moving average (EMA)"),
            ("seed", escaped(record.seed)),
            ("git commit of the run", commit if COMMIT.fullmatch(commit) else "unknown"),
            ("difference to PyTorch", f"{exported.difference:.2g}, the largest of two trials"),
        ],
    )


def _use(exported: ExportedFile, interface: Interface) -> list[str]:
    labels = f", labels={interface.attributes[:1]}" if interface.attributes else ""
    labels = f", labels={(interface.names or [*range(interface.classes)])[:2]}" if interface.classes else labels
    call = "images" if interface.channels else f"16, seed=0{labels}"
    result = "outputs" if interface.channels else interface.output
    code = [f'generator = ganforge.load_generator("{exported.file}")', f"{result} = generator({call})"]
    lines = ["With ganforge:", "```python\nimport ganforge\n\n" + "\n".join(code) + "\n```"]
    if interface.channels:
        lines.append(f"`images` is a tensor (N, {interface.channels}, h, w) in [-1, 1].")
    if exported.file.endswith(".onnx"):
        feed = ", ".join(f'"{entry.name}": {entry.name}' for entry in interface.inputs)
        code = ["import onnxruntime", f'session = onnxruntime.InferenceSession("{exported.file}")']
        code += [f"{interface.output} = session.run(None, {{{feed}}})[0]"]
        lines += ["With onnxruntime alone, from the arrays below:", "```python\n" + "\n".join(code) + "\n```"]
    if exported.file.endswith(".pt2"):
        lines.append("Reading a `.pt2` can run code: load only files that you trust.")
    return lines


def _input(entry: Input) -> tuple[str, ...]:
    return f"`{entry.name}`", f"({', '.join(map(str, entry.shape))})", entry.dtype, escaped(entry.values)


def _output(exported: ExportedFile, interface: Interface, model: GAN) -> str:
    channels, *sides = exported.shape
    if interface.output == "points":
        return f"The output is `points`, float32 (N, {channels})."
    note = ""
    if interface.channels:
        scale = model.generator.scale
        sides = ["H", "W"] if scale == 1 else [f"{scale} H", f"{scale} W"]  # type: ignore[list-item]
        note = " H and W are free"
        if interface.multiple > 1:
            least = f", above {interface.multiple}" if exported.file.endswith(".pt2") else ""
            note += f"{least}; inside, the image is padded to multiples of {interface.multiple} pixels"
        note += "."
    shape = ", ".join(map(str, ("N", channels, *sides)))
    return f"The output is `images`, float32 ({shape}) nominally in [-1, 1] but not clipped: clamp it.{note}"


def _measured(metrics: Mapping[str, Any], step: int) -> Iterator[str]:
    """Tables of the last and best values of training, and of evaluate.py's at this step, each below its protocol."""
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for name, score in metrics.items():
        entries = [(kind, score[kind]) for kind in ("last", "best") if kind in score]
        if entries and score["last"] == score["best"]:
            entries = [("last and best", score["last"])]
        evaluated = [entry for entry in score.get("evaluated", []) if entry["provenance"].get("step") == step]
        entries += [("evaluated", entry) for entry in evaluated]
        for kind, entry in entries if "/" not in name else ():  # a slash marks a value of one class or set
            value = "not finite" if entry["value"] is None else f"{entry['value']:.6g}"
            row = (escaped(name), kind, value, entry.get("step", step))
            tables.setdefault(_protocol(entry["provenance"]), []).append(row)
    for protocol, rows in tables.items():
        yield f"{protocol}:"
        yield _table(("metric", "", "value", "step"), rows)
    if not tables:
        yield "Nothing was measured."


def _protocol(provenance: Mapping[str, Any]) -> str:
    """The protocol, without paths of the machine that measured."""
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
    """Text of a run folder as literal Markdown."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    line = re.sub(r"([\\`*\[\]<>|~$&!#])|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", line)
    return re.sub(r"(?i)(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u200b", line)  # else addresses become links
