"""Parts from a file of the user's own are named on the command line, recorded, resumed and evaluated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK, TINY_POINTS, composed
from omegaconf import DictConfig, OmegaConf

from ganforge.commands.evaluate import evaluate
from ganforge.commands.train import train
from ganforge.experiment.load import load_run
from ganforge.models.gan import GAN
from ganforge.runs.record import evaluation_sections, read_record
from ganforge.runtime.errors import UserError

MY_LAB = '''
import torch
from torch import nn

from ganforge.augment import Augmentation
from ganforge.losses import Loss, NonSaturating
from ganforge.regularizers import Regularizer


class Margin(NonSaturating):
    def discriminator(self, real_logits, fake_logits):
        return super().discriminator(real_logits - 1, fake_logits + 1)


class Scaled(Loss):
    """Whose arguments are its own."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def discriminator(self, real_logits, fake_logits):
        return self.scale * (fake_logits.mean() - real_logits.mean())

    def generator(self, fake_logits, real_logits=None):
        return -self.scale * fake_logits.mean()


class Drift(Regularizer):
    def __call__(self, critic, real, fake):
        return real.logits.square().mean()


class Mirror(Augmentation):
    needs_images = False

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def augment(self, samples):
        self.calls += 1
        return -samples


class Line(nn.Module):
    def __init__(self, latent_size: int):
        super().__init__()
        self.layer = nn.Linear(latent_size, 2)

    def forward(self, latent, condition=None):
        return self.layer(latent)
'''

PARTS = {
    "loss": ["loss._target_=my_lab.Margin"],
    "loss with arguments of its own": ["~loss", "+loss={_target_: my_lab.Scaled, scale: 2.0}"],
    "penalty": ["+regularizer.mine={_target_: my_lab.Drift, weight: 1.0}"],
    "augmentation": ["+augment.mine={_target_: my_lab.Mirror}"],
    "network": [
        "~model.generator",
        "+model.generator={_target_: my_lab.Line, latent_size: '${model.latent.size}'}",
    ],
}
PLACES: dict[str, Callable[[GAN], object]] = {
    "loss": lambda model: model.loss,
    "loss with arguments of its own": lambda model: model.loss,
    "penalty": lambda model: model.regularizers["mine"],
    "augmentation": lambda model: model.augmentations["mine"],
    "network": lambda model: model.generator,
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    (tmp_path / "my_lab.py").write_text(MY_LAB)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    config = composed(*QUICK, *TINY_POINTS, "logger=none", "~callbacks.samples", "data.num_samples=64", *PARTS[part])
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    assert train(config, run) == 0

    with pytest.raises(UserError, match="set GANFORGE_TRUST=my_lab in the environment"):
        load_run(run)
    monkeypatch.setenv("GANFORGE_TRUST", "my_lab")
    resumed = OmegaConf.merge(read_record(run), {"resume": str(run), "trainer": {"max_steps": 4}})
    assert isinstance(resumed, DictConfig)
    assert train(resumed, run) == 0
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert type(PLACES[part](load_run(run).model)).__module__ == "my_lab"
    assert "sliced_wasserstein" in evaluate(evaluation_of(run))


def evaluation_of(run: Path) -> DictConfig:
    """What `evaluate.py run=<run>` composes."""
    record = read_record(run)
    sections = OmegaConf.masked_copy(record, evaluation_sections(record, []))
    options = f"run={run}", "num_samples=64", "trainer.enable_progress_bar=false"
    evaluation = OmegaConf.merge(OmegaConf.to_container(composed(*options, config="evaluate")), sections)
    assert isinstance(evaluation, DictConfig)
    return evaluation
