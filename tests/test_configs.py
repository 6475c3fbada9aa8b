"""Every file of conf/ composes, and what fits together trains."""

from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, composed, fitted, run, slow, tiny
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torchvision.models.vgg import make_layers

from ganforge.experiment.build import build
from ganforge.experiment.trust import validate_untrusted
from ganforge.runtime.errors import UserError

CONF = ROOT / "conf"


def options(group: str) -> list[str]:
    others = {"model": "bicubic", "logger": "wandb"}  # has no trainer; is tested where it is installed
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != others.get(group))


ANYWHERE = ["loss", "regularizer", "augment", "schedule", "trainer", "callbacks", "logger", "optimizer"]
"""Whose options fit every model and all data, so that one composition tries an option of each."""
GROUPS = ["model", "data", "degradation", "experiment", "metrics", "content", "debug"]
CHOICES = [(group, option) for group in GROUPS for option in options(group)]
COMBINATIONS = list(
    islice(zip(*(cycle(options(group)) for group in ANYWHERE), strict=True), max(map(len, map(options, ANYWHERE))))
)
POINTS = ("quadratic", "ring", "grid")
NEEDS = {("data", name): ["model=gan"] for name in POINTS}
NEEDS |= {("data", name): ["data.root=somewhere", "extractor=digits"] for name in ("folder", "pairs", "celeba")}
NEEDS |= {("degradation", name): ["data=pairs", "data.root=somewhere"] for name in options("degradation")}
NEEDS["degradation", "none"].append("data.low_root=elsewhere")
NEEDS |= {("metrics", name): ["data=grid", "model=gan"] for name in ("points", "mixture")}
NEEDS |= {("metrics", "stacked"): ["data=stacked_mnist"], ("metrics", "pairs"): ["data=pairs"]}
PHOTOGRAPHS = ["data=pairs", "data.root=somewhere", "content=pixels"]
NEEDS |= {("model", name): PHOTOGRAPHS for name in ("srgan", "pix2pix")}
NEEDS |= {("content", name): ["model=pix2pix", *PHOTOGRAPHS[:2]] for name in options("content")}
NEEDS |= {("experiment", name): PHOTOGRAPHS[1:] for name in options("experiment") if name.startswith("sr")}
NEEDS |= {("experiment", f"pix2pix_{kind}"): PHOTOGRAPHS[1:2] for kind in ("quick", "paper")}
NEEDS |= {
    ("experiment", name): ["data.root=somewhere", "extractor=digits"]
    for name in (
        *(f"{model}_paper" for model in ("dcgan", "lapgan", "sngan", "wgan_gp", "lsgan", "dragan")),
        *(f"{model}_paper" for model in ("r3gan", "fastgan", "stylegan2")),
        *("fastgan_quick", "dragan_anime"),
    )
}
NEEDS["experiment", "fastgan_paper"].append("content=pixels")  # nothing is fetched


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "model=srgan",
            "data=pairs",
            "schedule=linear",
            "data.batch_size=8",
            "+model.new={a: 1}",
            "~callbacks.samples",
        ],
        ["optimizer@model.generator_optimizer=sgd", "logger=[csv,tensorboard]", "++logger.csv.prefix=a", "name=x"],
    ],
)
def test_the_tests_compose_as_hydra_does(overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("train", overrides)
    assert OmegaConf.to_yaml(composed(*overrides)) == OmegaConf.to_yaml(whole)


def test_no_group_is_forgotten() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} == {*GROUPS, *ANYWHERE, "extractor"}


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_composes_and_instantiates(tmp_path: Path, group: str, option: str) -> None:
    extra = list(NEEDS.get((group, option), []))
    if group == "experiment" and option.endswith("_paper"):
        extra.append("trainer.accelerator=cpu")  # there may be no other here
    if group == "content" and option.startswith("vgg"):
        torch.save(make_layers([64, 64, "M"]).state_dict(), tmp_path / "vgg.pth")  # nothing is fetched
        extra += [f"content.weights={tmp_path / 'vgg.pth'}", "content.layers=5"]
    check(composed(*extra[:1], f"{group}={option}", *extra[1:]), tmp_path)


@pytest.mark.parametrize("chosen", COMBINATIONS, ids="-".join)
def test_choices_that_fit_anywhere_compose_and_instantiate(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    names = {"optimizer": "optimizer@model.discriminator_optimizer"}
    choices = dict(zip(ANYWHERE, chosen, strict=True))
    if choices["augment"] == "ada":
        choices["loss"] = "hinge"  # it follows the sign of the logits
    overrides = [f"{names.get(group, group)}={option}" for group, option in choices.items()]
    if {"gradient_penalty", "zero_centred", "dragan"} & {*chosen}:
        overrides.append("model.discriminator.normalization=layer")
    if "mismatch" in chosen:
        overrides.append("model=compact_conditional")
    config = composed(*overrides, "trainer.accelerator=cpu")  # there may be no other here
    check(config, tmp_path)
    assert not config.schedule or callable(instantiate(config.schedule))


def check(config: DictConfig, folder: Path) -> None:
    """That a config is complete, makes what it describes, and could be resumed."""
    validate_untrusted(config)
    assert not OmegaConf.missing_keys(config)
    build(config, folder)


@pytest.mark.slow  # it imports the package as often as it has modules
def test_every_module_can_be_imported_first(tmp_path: Path) -> None:
    lines = [
        "import importlib, pkgutil, sys, ganforge",
        "for module in list(pkgutil.walk_packages(ganforge.__path__, 'ganforge.')):",
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'ganforge']:",
        "        del sys.modules[name]",
        "    importlib.import_module(module.name)",
    ]
    (tmp_path / "script.py").write_text("\n".join(lines))
    done = run(str(tmp_path / "script.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


CONDITIONAL = (
    *("cgan", "cgan_conv", "cgan_projection", "lapgan_conditional"),
    *("compact_conditional", "sngan_conditional", "r3gan_conditional", "stylegan2_conditional"),
)
CONDITIONS: dict[str, Any] = {
    "celeba": ["data.condition=attributes", "data.attributes=[Smiling]"],
    "folder": ["data.condition=labels"],
    "pairs": None,
}
"""How data that have no labels by default get some."""


PAIRS = list(product(options("model"), options("data")))
ALWAYS = {*zip(options("model"), cycle(options("data"))), *zip(cycle(options("model")), options("data"))}
"""Each model and each dataset at least once; the other pairs are slow."""


@pytest.mark.parametrize(("model", "data"), [pair if pair in ALWAYS else slow(*pair) for pair in PAIRS])
def test_models_train_on_data_that_fits(
    tmp_path: Path, fake_mnist: Path, pictures: Path, fake_celeba: Path, model: str, data: str
) -> None:
    arguments = [*tiny(model), f"data={data}", "data.batch_size=8"]
    if data in POINTS:
        if model == "gan":
            assert fitted(tmp_path, *arguments, "evaluate_every=1", "data.num_samples=64").trainer.global_step == 2
        else:
            with pytest.raises(Exception, match=r"data\.(image_size|channels)|conditioned on labels"):
                build(composed(*arguments), tmp_path)
        return
    root = {"celeba": fake_celeba, "folder": pictures, "pairs": pictures}.get(data, fake_mnist)
    arguments += [f"data.root={root}", "data.image_size=28"]
    if data != "pairs":  # whose validations need a model from images to images
        arguments += ["evaluate_every=1", "data.num_samples=64"]
    if data in ("celeba", "folder"):
        arguments.append("extractor=digits")  # nothing is fetched
    if data == "stacked_mnist":
        arguments.append("data.size=1000")  # to be measured
    if model in ("srgan", "pix2pix"):
        if data != "pairs":
            with pytest.raises(UserError, match="needs data=pairs"):
                build(composed(*arguments), tmp_path)
            return
    elif model in CONDITIONAL and data in CONDITIONS:
        with pytest.raises(Exception, match="conditioned on labels, which this dataset lacks"):
            build(composed(*arguments), tmp_path)
        if CONDITIONS[data] is None:
            return
        arguments += CONDITIONS[data]
    assert fitted(tmp_path, *arguments).trainer.global_step == 2
