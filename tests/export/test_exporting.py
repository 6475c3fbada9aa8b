"""Generators that are handed over make what the run's generator makes, and cannot run code."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY_POINTS, composed, run, slow, tiny
from omegaconf import OmegaConf
from torch import Tensor

import ganforge
from ganforge.commands.export import export
from ganforge.experiment.build import build
from ganforge.experiment.load import load_run
from ganforge.export.formats import FORMATS
from ganforge.export.interface import Interface, read_interface, split_inputs
from ganforge.export.model_card import escaped
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8

PHOTOGRAPHS = ["data=pairs", "data.root=somewhere"]
FACES = ["data=celeba", "data.root=somewhere", "data.condition=attributes"]
MODELS = {
    "gan": TINY_POINTS,
    "dcgan": tiny("dcgan"),
    "cgan": tiny("cgan"),
    "cgan_conv": tiny("cgan_conv", *FACES),
    "sngan_conditional": tiny("sngan_conditional"),
    "lapgan": tiny("lapgan"),
    "lapgan_conditional": tiny("lapgan_conditional"),
    "stylegan2": tiny("stylegan2_conditional"),
    "srgan": tiny("srgan", *PHOTOGRAPHS, "model.tile=20"),
    "pix2pix": tiny("pix2pix", *PHOTOGRAPHS, "degradation=grayscale", "model.generator.dropout=0.5"),
}
INPUTS = {
    "gan": {"latent": ("N", 2)},
    "dcgan": {"latent": ("N", 100)},
    "cgan": {"latent": ("N", 100), "label": ("N",)},
    "cgan_conv": {"latent": ("N", 100), "attributes": ("N", 2)},
    "sngan_conditional": {"latent": ("N", 128), "label": ("N",)},
    "lapgan": {"latent_7": ("N", 100), "latent_14": ("N", 196), "latent_28": ("N", 784)},
    "srgan": {"image": ("N", 3, "H", "W")},
    "pix2pix": {"image": ("N", 1, "H", "W")},
}
INPUTS["stylegan2"] = {"latent": ("N", 8), "label": ("N",)}
INPUTS["lapgan_conditional"] = {**INPUTS["lapgan"], "label": ("N",)}
ALWAYS = {
    "onnx": ("lapgan_conditional",),
    "torch_export": ("cgan_conv",),
    "safetensors": ("gan", "lapgan_conditional", "pix2pix", "stylegan2"),
}
"""What is exported on every change: each kind of input in some format, and labels and open sizes in those of others."""
CASES = [(name, kind) if name in ALWAYS[kind] else slow(name, kind) for name in MODELS for kind in FORMATS]


class Runs(dict[str, Path]):
    """Run folders by model, made when they are used, with weights that differ from those of their moving averages."""

    def __init__(self, factory: pytest.TempPathFactory):
        self.factory = factory

    def __missing__(self, name: str) -> Path:
        self[name] = made(self.factory.mktemp(name), *MODELS[name])
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory)


def made(folder: Path, *overrides: str) -> Path:
    config = composed("trainer.accelerator=cpu", *overrides)
    (folder / ".hydra").mkdir()
    (folder / "checkpoints").mkdir()
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    state = build(config, folder).model.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value), alpha=0.01)
    torch.save({"state_dict": state, "global_step": 7}, folder / "checkpoints" / "last.ckpt")
    return folder


def exported(run: Path, output: Path, kind: str, *options: str) -> Path:
    return export(composed(f"run={run}", f"output={output}", f"format={kind}", *options, config="export"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_files_make_what_the_model_makes(runs: dict[str, Path], tmp_path: Path, name: str, kind: str) -> None:
    path = exported(runs[name], tmp_path, kind)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", path.name]
    card = (tmp_path / "README.md").read_text()
    generator, original = ganforge.load_generator(path), ganforge.load_generator(runs[name])
    assert {entry.name: entry.shape for entry in generator.inputs} == INPUTS[name]
    assert all(f"| `{entry.name}` | ({', '.join(map(str, entry.shape))}) |" in card for entry in generator.inputs)
    assert generator.inputs == original.inputs
    model = load_run(runs[name])[1]
    for count, height, width in ((1, 16, 16), (2, 9, 20), (5, 20, 13)):
        inputs = generator.interface.examples(count, height, width, seed=count)
        expected = model.sample(*split_inputs(inputs, len(generator.interface.latents)))
        assert torch.allclose(others(path, INPUTS[name], inputs), expected, rtol=0, atol=1e-5)
        assert torch.allclose(generator.network(*inputs), expected, rtol=0, atol=1e-5)
    what: Any = torch.rand(2, generator.interface.channels, 33, 47) if generator.interface.channels else 3
    assert torch.allclose(generator(what), original(what), rtol=0, atol=1e-5)


def others(path: Path, names: Any, inputs: list[Tensor]) -> Tensor:
    """What a file makes for those who have no ganforge."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        arrays = [tensor.numpy() for tensor in inputs]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*inputs)
    return ganforge.load_generator(path).network(*inputs)


@pytest.mark.slow
def test_samples_are_those_of_sample_py(runs: dict[str, Path], tmp_path: Path) -> None:
    options = ["num_samples=70", "seed=1", "labels=[3,7]", "separate=true", "format=npz", f"output={tmp_path}"]
    assert run("sample.py", f"run={runs['cgan']}", *options, cwd=tmp_path).returncode == 0
    drawn = torch.from_numpy(np.load(tmp_path / "samples-seed-1-labels-3-7.npz")["samples"]).int()
    paths = [runs["cgan"], *(exported(runs["cgan"], tmp_path, kind) for kind in FORMATS)]
    for path in paths:
        made = to_uint8(ganforge.load_generator(path)(70, seed=1, labels=[3, 7])).int()
        assert made.shape == drawn.shape
        assert (drawn - made).abs().max() <= (1 if path.suffix == ".onnx" else 0)


def test_calls(runs: dict[str, Path]) -> None:
    cgan, faces, srgan = (ganforge.load_generator(runs[name]) for name in ("cgan", "cgan_conv", "srgan"))
    assert cgan(16).shape == (16, 1, 28, 28)
    assert torch.equal(cgan(16)[:3], cgan(20)[:3])
    assert not torch.equal(cgan(4, labels=1), cgan(4, labels=[2]))
    assert torch.equal(cgan(4, labels=torch.tensor([1, 2])), cgan(4, labels=[1, 2]))
    assert faces(4, labels=["Smiling+Male", "none"]).shape == (4, 3, 64, 64)
    image = torch.rand(1, 3, 50, 41)
    assert torch.equal(srgan(image), load_run(runs["srgan"])[1].sample(None, image).clamp(-1, 1))
    for wrong, message in (
        (lambda: cgan(0), "call it with a count"),
        (lambda: cgan(image), "call it with a count"),
        (lambda: cgan(1, seed=-1), "seed=-1"),
        (lambda: cgan(1, labels=[10]), "numbers from 0 to 9"),
        (lambda: faces(1, labels=["Bald"]), "must be Smiling, Male"),
        (lambda: srgan(16), r"call it with a tensor \(N, 3, h, w\)"),
        (lambda: srgan(image[0]), r"call it with a tensor \(N, 3, h, w\)"),
        (lambda: srgan(image.byte()), "call it with floats"),
        (lambda: srgan(image, labels=[1]), "not conditioned on labels"),
        (lambda: ganforge.load_generator("no/such.onnx"), "neither a run folder nor"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_the_card_tells_what_it_is(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = {"fake_samples": 50, "run": "/home/somebody", "step": 7}
    now, best = ({"value": value, "step": step, "provenance": provenance} for value, step in ((1.5, 7), (None, 6)))
    scores = {"fid": {"higher_is_better": False, "last": now, "best": best, "evaluated": [now]}}
    (runs["cgan_conv"] / "metrics.json").write_text(json.dumps(scores))
    exported(runs["cgan_conv"], tmp_path, "onnx")
    card = (tmp_path / "README.md").read_text()
    for line in (
        "# GAN trained on CelebA",
        "last.ckpt, after 7 steps",
        "| weights | moving average (EMA) |",
        "| fid | last | 1.5 | 7 |",
        "| fid | best | not finite | 6 |",
        "| fid | evaluated | 1.5 | 7 |",
        "0 or 1 for each of Smiling, Male",
        "_target_: ganforge.networks.conditional.ConvGenerator",
        "non-commercial research only",
        'images = session.run(None, {"latent": latent, "attributes": attributes})[0]',
    ):
        assert line in card, line
    assert "somebody" not in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fid_digits", "fid_digits"),
        ("a\n# b | c", r"a \# b \| c"),
        ("<script>&lt;", r"\<script\>\&lt;"),
        ("[x](y) `z` *b* _i_ \\|", r"\[x\](y) \`z\` \*b\* \_i\_ \\\|"),
        ("https://evil", "https:\u200b//evil"),
    ],
)
def test_texts_mean_nothing_in_markdown(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_the_card_escapes_what_the_folder_says(tmp_path: Path) -> None:
    folder = made(tmp_path, *TINY_POINTS)
    evil = "<script>x</script>\n# heading | cell"
    now = {"value": 1.5, "step": 7, "provenance": {evil: evil}}
    scores = {evil: {"higher_is_better": True, "last": now, "best": now}}
    (folder / "metrics.json").write_text(json.dumps(scores))
    for commit, shown in ((evil, "unknown"), ("0123456789abcdef", "0123456789abcdef"), (None, "unknown")):
        (folder / "environment.json").write_text(json.dumps({"git_commit": commit}))
        exported(folder, tmp_path / "export", "safetensors")
        card = (tmp_path / "export" / "README.md").read_text()
        assert f"| git commit of the run | {shown} |" in card
        assert "<script>" not in card
        assert "\n# heading" not in card
    for name in ("environment.json", "metrics.json"):
        (folder / name).write_text("[1]")
        with pytest.raises(UserError, match=f"{name} was not written by ganforge: it is a list"):
            exported(folder, tmp_path / "export", "safetensors")
        (folder / name).unlink()


def test_mistakes_get_one_message(runs: dict[str, Path], tmp_path: Path) -> None:
    for options, message in (
        (["format=foo"], "format=foo: must be onnx, torch_export, safetensors"),
        (["run=nowhere"], "is not a run folder"),
        (["checkpoint=nothing.ckpt"], "checkpoint=nothing.ckpt: must be last, best"),
        (["output=/proc/nowhere"], "output=/proc/nowhere cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            export(composed(f"run={runs['gan']}", f"output={tmp_path}", *options, config="export"))
    result = run("export.py", "format=onnx", cwd=tmp_path)
    assert result.returncode == 2
    assert "run is missing" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_card_that_cannot_be_written_gets_one_message(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(UserError, match=r"^output=.* cannot be written: "):
        exported(runs["gan"], tmp_path, "safetensors")


@pytest.mark.parametrize(
    "wrong", [{"names": "ab"}, {"names": ["a"]}, {"names": [1, 2]}, {"attributes": "ab"}, {"attributes": [1]}]
)
def test_names_in_an_untrusted_file_are_texts(wrong: dict[str, Any]) -> None:
    known = Interface({}, {}, "images", classes=2, names=["a", "b"])
    assert known.conditions(["b", "a"]).tolist() == [1, 0]  # type: ignore[union-attr]
    assert known.inputs[0].values == "0 to 1"
    assert read_interface(known.text(), "x.onnx") == known
    with pytest.raises(UserError, match="was not written by this version of export"):
        read_interface(json.dumps({**asdict(known), **wrong}), "x.onnx")


def test_a_missing_package_is_named(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(runs["gan"], tmp_path, "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for wanted in (lambda: exported(runs["gan"], tmp_path, "onnx"), lambda: ganforge.load_generator(path)):
        with pytest.raises(UserError, match=r'needs onnxruntime: pip install -e "\.\[export\]"'):
            wanted()


def test_nothing_is_left_of_a_file_that_differs(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganforge.commands.export.TOLERANCE", -1)
    with pytest.raises(UserError, match="differ from PyTorch's by"):
        exported(runs["gan"], tmp_path / "export", "safetensors")
    assert not list(tmp_path.iterdir())


def test_importing_ganforge_is_fast() -> None:
    code = "import sys, ganforge; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("content", [b"", b"nothing of ours", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors"])
def test_files_of_others_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}"):
        ganforge.load_generator(path)
