"""Every diff of the README, applied to a copy of `conf/` and to the package, trains."""

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, TINY_MLP, tiny
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from ganforge.cli.resolvers import register_resolvers
from ganforge.experiment.build import Experiment, build


def diffs(title: str) -> list[str]:
    """The lines that the diffs under a heading of the README add."""
    section = (
        (ROOT / "README.md").read_text().partition(f"### {title}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    )
    blocks = re.findall(r"^```diff\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"the README has no diffs under {title}"
    for block in blocks:
        assert len(block.splitlines()) <= 10, f"a diff under {title} has more than ten lines"
        assert all(line.startswith("+") for line in block.splitlines()), "a diff here only adds"
    return [re.sub(r"^\+", "", block, flags=re.MULTILINE) for block in blocks]


def module(monkeypatch: pytest.MonkeyPatch, name: str, code: str = "", **names: object) -> ModuleType:
    """A module of the package with the names that its first lines would import."""
    new = ModuleType(name)
    vars(new).update(names)
    exec(code, vars(new))
    monkeypatch.setitem(sys.modules, name, new)
    package, _, leaf = name.rpartition(".")
    monkeypatch.setattr(f"{package}.{leaf}", new, raising=False)
    return new


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))


def trained(conf: Path, *overrides: str) -> Experiment:
    register_resolvers()
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("train", [*QUICK, "data.batch_size=16", *overrides])
    experiment = build(config, conf.parent / "run")
    experiment.trainer.fit(experiment.model, datamodule=experiment.data)
    assert experiment.trainer.global_step == 2
    return experiment


def test_add_a_loss(conf: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ganforge.losses

    code, yaml = diffs("Add a loss")
    names = dict(vars(ganforge.losses))
    exec(code, names)
    monkeypatch.setattr(ganforge.losses, "LogisticMargin", names["LogisticMargin"], raising=False)
    (conf / "loss" / "logistic_margin.yaml").write_text(yaml)
    experiment = trained(conf, "model=gan", *TINY_MLP, f"data.root={fake_mnist}", "loss=logistic_margin")
    assert type(experiment.model.loss).__name__ == "LogisticMargin"


def test_add_an_architecture(conf: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Generator(nn.Module):
        def __init__(self, latent_size: int, shape: list[int]):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(latent_size, np.prod(shape)), nn.Unflatten(1, shape))

        def forward(self, latent: Tensor, condition: Tensor | None) -> Tensor:
            return self.layers(latent)

    class Discriminator(nn.Module):
        def __init__(self, shape: list[int]):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(np.prod(shape), 1), nn.Flatten(0))

        def forward(self, sample: Tensor, condition: Tensor | None) -> Tensor:
            return self.layers(sample)

    (yaml,) = diffs("Add an architecture")
    module(monkeypatch, "ganforge.networks.my_networks", Generator=Generator, Discriminator=Discriminator)
    (conf / "model" / "mine.yaml").write_text(yaml)
    trained(conf, "model=mine", f"data.root={fake_mnist}")


def test_add_a_way_of_training(conf: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature matching, which needs a second head of D; penalties and the log come with the step."""
    import ganforge.models.gan
    import ganforge.networks.mlp as mlp

    network, model, yaml = diffs("Add a way of training")
    module(monkeypatch, "ganforge.networks.feature_matching", network, NamedTuple=NamedTuple, Tensor=Tensor, mlp=mlp)
    module(monkeypatch, "ganforge.models.feature_matching", model, GAN=ganforge.models.gan.GAN)
    (conf / "model" / "feature_matching.yaml").write_text(yaml)
    options = ["model=feature_matching", *TINY_MLP, f"data.root={fake_mnist}", "regularizer=r1"]
    log = trained(conf, *options, "trainer.log_every_n_steps=1").model.step_log
    assert log.terms.keys() == {*("loss_d/adversarial", "loss_d/r1", "loss_d/total"), "loss_g/features", "loss_g/total"}
    assert {"logits/real", "accuracy/fake", "gradient_norm/g"} <= log.values.keys()


def test_add_a_dataset(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ganforge.data.base

    (code, yaml) = diffs("Add a dataset")
    names = {"TensorData": ganforge.data.base.TensorData, "torch": torch, "np": np}
    module(monkeypatch, "ganforge.data.arrays", code, **names)
    (conf / "data" / "arrays.yaml").write_text(yaml)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (64, 1, 28, 28), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    trained(conf, *tiny("dcgan"), "data=arrays")
