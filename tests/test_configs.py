"""Every file of conf/ composes, and what fits together trains."""

from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT, TINY_DCGAN, composed, fitted
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ganforge.experiment import build

CONF = ROOT / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = ["model", "data", "loss", "regularizer", "schedule", "trainer", "callbacks", "logger", "experiment"]
CHOICES = [(group, option) for group in GROUPS for option in options(group)]
NEEDS = {("data", name): "model=gan" for name in ("quadratic", "ring", "grid")}
NEEDS[("regularizer", "gradient_penalty")] = "model.discriminator.normalization=null"


def test_no_group_is_forgotten() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_composes_and_instantiates(tmp_path: Path, group: str, option: str) -> None:
    extra = [NEEDS[group, option]] if (group, option) in NEEDS else []
    if (group, option) == ("trainer", "gpu"):
        extra.append("trainer.accelerator=cpu")  # there may be none here
    config = composed(f"{group}={option}", *extra)
    assert not OmegaConf.missing_keys(config)
    build(config, tmp_path)
    if group == "schedule" and config.schedule:
        assert callable(instantiate(config.schedule))


@pytest.mark.parametrize(("model", "data"), list(product(options("model"), options("data"))))
def test_models_train_on_data_that_fits(tmp_path: Path, fake_mnist: Path, model: str, data: str) -> None:
    arguments = [f"model={model}", f"data={data}", "data.batch_size=8", "evaluate_every=1", "data.num_samples=64"]
    points = NEEDS.get(("data", data)) is not None
    if points and model != "gan":
        with pytest.raises(Exception, match=r"data\.image_size"):
            build(composed(*arguments), tmp_path)
        return
    if not points:
        arguments.append(f"data.root={fake_mnist}")
    if model != "gan":
        arguments += TINY_DCGAN
    assert fitted(tmp_path, *arguments).trainer.global_step == 2
