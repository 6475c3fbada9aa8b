"""Mistakes in a config end in one sentence before anything is trained or written."""

from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, TINY_POINTS, composed
from omegaconf import OmegaConf
from torch import Tensor, nn

from ganforge.callbacks import Samples
from ganforge.cli.trainer_options import check_trainer
from ganforge.commands.evaluate import evaluate
from ganforge.experiment.build import build
from ganforge.losses import Loss
from ganforge.runtime.errors import UserError, explanation


class Baseless:
    """Has what a loss needs but for the base class."""

    def __init__(self, average_halves: bool = False, label_smoothing: float = 0.0): ...

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -fake_logits.mean()


class Half(Loss):
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()


class Strict(Half):
    """A loss that takes no arguments."""

    def __init__(self) -> None:
        super().__init__()


class Linear(nn.Module):
    """A generator that takes fewer arguments than that of model=gan."""

    def __init__(self, latent_size: int):
        super().__init__()
        self.layer = nn.Linear(latent_size, 2)

    def forward(self, latent: Tensor, condition: Any) -> Tensor:
        return self.layer(latent)


PLAIN = ["model=gan", "data=mnist"]
"""Without values that would bring back some of what is left out."""

MISTAKES = {
    "+callbacks.mine=3": "callbacks.mine is not a callback",
    "model.loss=null": "model.loss is none: it needs a class that derives from ganforge.losses.Loss",
    "loss._target_=test_validate.Baseless": "model.loss is a Baseless: it needs a class that derives",
    "loss._target_=test_validate.Half": "Half has no generator()",
    "loss._target_=test_validate.Strict": "has no argument average_halves, label_smoothing. Replace loss as a",
    "model.generator._target_=test_validate.Linear": "has no argument shape, hidden, activation",
    "~model.generator": "model.generator is missing",
    "~model.discriminator": "model.discriminator is missing",
    **{f"~{part}": f"{part} is missing: add {part}=" for part in ("model", "loss", "regularizer")},
    **{f"~{part}": f"{part} is missing: {part}=" for part in ("schedule", "metrics", "extractor")},
    "~callbacks": "callbacks is missing: ~callbacks.samples leaves out",
    "~logger": "logger is missing: logger=none trains without",
    "+logger.csv=3": "logger.csv is not a logger: it needs a _target_",
    "trainer.strategy=ddp_spawn": "trainer.strategy=ddp_spawn: must be auto",
    "trainer.strategy=nonsense": "trainer.strategy=nonsense: must be auto",
    "trainer.precision=16-mixed": "Use trainer.precision=bf16-mixed",
    "trainer.precision=transformer-engine": "must be one of 32-true",
    "data.seed=-1": "data.seed=-1: must be a whole number",
    "model.seed=1.5": "model.seed=1.5: must be a whole number",
    "data.num_samples=1000000000": "data.num_samples=1000000000: must be a whole number from 1 to 10,000,000",
    "callbacks.samples.count=100000000": "callbacks.samples.count=100000000: must be from 1 to 10,000",
    "callbacks.evaluation.standing_statistics=maybe": "standing_statistics=maybe: must be true or false",
}


LIGHTNINGS = {
    "fast_dev_run=true": "trainer.fast_dev_run is not supported: use debug=fast",
    "overfit_batches=2": "trainer.overfit_batches is not supported: use debug=overfit",
    "limit_train_batches=2": "trainer.limit_train_batches is not supported: set trainer.max_steps=",
    "limit_val_batches=2": "trainer.limit_val_batches is not supported: set data.num_samples=",
    "gradient_clip_val=1": "trainer.gradient_clip_val is not supported: set model.gradient_clip=",
    "gradient_clip_algorithm=value": "trainer.gradient_clip_algorithm is not supported: set model.gradient_clip=",
    "accumulate_grad_batches=2": "trainer.accumulate_grad_batches is not supported: set data.batch_size=",
    "default_root_dir=x": "trainer.default_root_dir is not supported: set hydra.run.dir=",
    "enable_checkpointing=false": "trainer.enable_checkpointing is not supported: use ~callbacks.checkpoints",
}


@pytest.mark.parametrize("option", LIGHTNINGS)
def test_options_of_lightnings_trainer_are_answered(option: str) -> None:
    key, _, value = option.partition("=")
    trainer = OmegaConf.create({"precision": "32-true", "strategy": "auto"})
    check_trainer(trainer)
    with pytest.raises(UserError, match=LIGHTNINGS[option]):
        check_trainer(OmegaConf.merge(trainer, {key: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, mistake: str) -> None:
    with pytest.raises(Exception, match=MISTAKES[mistake].replace("+", r"\+").replace("()", r"\(\)")) as raised:
        build(
            composed(*QUICK, *(PLAIN if mistake.startswith("~") else TINY_POINTS), "evaluate_every=2", mistake),
            tmp_path,
        )
    assert explanation(raised.value)
    assert "\n" not in str(explanation(raised.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mistake",
    ["standing_statistics=maybe", "moving_average=maybe", "seed=-1", "num_samples=1000000000"],
)
def test_mistakes_of_an_evaluation(mistake: str) -> None:
    with pytest.raises(UserError, match=f"^{mistake}: must be"):
        evaluate(composed("model=bicubic", "data=pairs", mistake, config="evaluate"))


def test_parts_that_may_be_left_out(tmp_path: Path) -> None:
    options = [*QUICK, *TINY_POINTS, "logger=none", "~callbacks.samples", "~callbacks.evaluation"]
    experiment = build(composed(*options), tmp_path)
    assert experiment.trainer.loggers == []
    assert not any(isinstance(callback, Samples) for callback in experiment.trainer.callbacks)
