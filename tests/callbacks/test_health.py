"""What goes wrong with a training is noticed, named, and dealt with as asked; what goes well is left alone."""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY_MLP, TINY_POINTS, composed, equal, run, run_ranks, scalars, slow
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ganforge.callbacks.checkpoints import latest_checkpoint, read_checkpoint, rewind
from ganforge.callbacks.health import EVALUATION, Health
from ganforge.callbacks.health_signs import LOG_WEIGHT, SIGNS, SignTracker, swing
from ganforge.commands.train import train
from ganforge.losses import NonSaturating
from ganforge.runtime.files import read_json

HASTY = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=4"]
HASTY += ["callbacks.health.patience=60", "checkpoint_every=20", "evaluate_every=null", "seed=1"]
TOO_STRONG = ["loss=minimax", "model.generator_optimizer.lr=1e-6", "model.discriminator_optimizer.lr=1e-2"]
TOO_STRONG += ["regularizer=none"]


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFORGE_TRUST", "test_health")


class Sabotage(Callback):
    """Harms a training from a step on, until it is rewound."""

    def __init__(self, step: int, value: float = 0.0, forever: bool = False):
        self.step, self.value, self.forever = step, value, forever

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step >= self.step and (self.forever or not pl_module.rewinds):
            with torch.no_grad():
                for parameter in list(pl_module.generator.parameters())[-2:]:
                    parameter.fill_(self.value)


def sabotaged(step: int, value: float = 0.0, forever: bool = False) -> str:
    options = f"step: {step}, value: {value}, forever: {str(forever).lower()}"
    return f"+callbacks.sabotage={{_target_: test_health.Sabotage, {options}}}"


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    """What metrics.json says of the health of a run."""
    config = composed(*HASTY, *overrides, "~callbacks.samples")
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    train(config, folder)
    return read_json(folder / "metrics.json").get("health", {"signs": [], "rewinds": []})


def both_learn_at(rate: float) -> list[str]:
    """Points with networks of the usual size."""
    rates = [f"model.{player}_optimizer.lr={rate}" for player in ("generator", "discriminator")]
    return ["model=gan", "data=quadratic", "regularizer=none", *rates]


class Swinging(NonSaturating):
    """Has the losses of a game that goes in circles: trainings that do differ from processor to processor."""

    updates = 0

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        self.updates += 1
        return self._factor * super().discriminator(real_logits, fake_logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return self._factor * super().generator(fake_logits, real_logits)

    @property
    def _factor(self) -> float:
        return 1 + 0.95 * math.sin(self.updates * 2 * math.pi / 80)


NO_DIVERSITY = "~metrics.against_real.diversity"  # of which small networks have none at first


FAILURES = {
    "a collapsed generator": ([*TINY_POINTS, sabotaged(0)], {"lost_diversity", "lost_feature_diversity"}),
    "a D far too strong": ([*TINY_POINTS, *TOO_STRONG], {"discriminator_wins", "saturation"}),
    "a game that goes in circles": ([*TINY_POINTS, "loss._target_=test_health.Swinging"], {"oscillation"}),
    "a diverging learning rate": (both_learn_at(3), {"exploding_weights"}),
    "a saturated generator": (
        ["model=gan", "data=mnist", *TINY_MLP, sabotaged(0, value=100)],
        {"vanishing_gradient", "lost_diversity"},
    ),
}
HEALTHY = {
    "quadratic": ["model=gan", "data=quadratic", "trainer.max_steps=1500"],
    "ring": ["model=gan", "data=ring", "trainer.max_steps=1500"],
    "digits": ["model=dcgan", "data=mnist", "model.generator.width=16", "trainer.max_steps=500"],
}
LOGS = Path(__file__).parent / "logs"
"""What these trainings showed; their slow tests write it anew with GANFORGE_UPDATE_GOLDEN=1."""


def replayed(name: str, patience: int) -> set[str]:
    """The signs that are noticed in what a training has shown."""
    trackers: dict[str, SignTracker] = {}
    noticed = set()
    for where, step, values in json.loads((LOGS / f"{name.replace(' ', '_')}.json").read_text()):
        tracker = trackers.setdefault(where, SignTracker(1.0 if where == EVALUATION else LOG_WEIGHT))
        tracker.update(values)
        noticed |= {sign.name for sign in tracker.check(step, patience)[0]}
    return noticed


@pytest.fixture
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write what a training shows to LOGS, if that is asked for."""
    rows: list[Any] = []
    check = Health._check

    def record(self: Health, trainer: Any, where: str, values: Mapping[str, float], weight: float) -> None:
        rows.append([where, trainer.global_step, {name: float(f"{value:.3g}") for name, value in values.items()}])
        check(self, trainer, where, values, weight)

    monkeypatch.setattr(Health, "_check", record)
    yield
    if os.environ.get("GANFORGE_UPDATE_GOLDEN"):
        LOGS.mkdir(exist_ok=True)
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        (LOGS / f"{request.node.callspec.params['name'].replace(' ', '_')}.json").write_text(f"[\n{lines}\n]\n")


@pytest.mark.parametrize("name", FAILURES)
def test_what_failures_show_is_named(name: str) -> None:
    assert FAILURES[name][1] <= replayed(name, patience=60)


@pytest.mark.parametrize("name", HEALTHY)
def test_what_healthy_trainings_show_has_no_name(name: str) -> None:
    assert not replayed(name, patience=300)


@pytest.mark.parametrize("name", [slow(name) for name in FAILURES])
@pytest.mark.usefixtures("recording")
def test_failures_are_named(tmp_path: Path, fake_mnist: Path, name: str) -> None:
    overrides, signs = FAILURES[name]
    root = [f"data.root={fake_mnist}", "data.num_samples=64"] if "data=mnist" in overrides else []
    health = trained(tmp_path / "run", *overrides, *root, "trainer.max_steps=500", "evaluate_every=100")
    assert signs <= {entry["sign"] for entry in health["signs"]}


def test_signs_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides, signs = FAILURES["a collapsed generator"]
    health = trained(tmp_path, *overrides, "trainer.max_steps=100", "evaluate_every=20", "data.num_samples=64")
    assert {entry["sign"] for entry in health["signs"]} == signs
    for sign in SIGNS:
        assert (sign.helps in caplog.text) == (sign.name in signs), "the console names the option that helps"
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "health/text_summary" in events.Tags()["tensors"]


def test_samples_of_one_class_have_a_name() -> None:
    tracker = SignTracker(weight=1.0)
    tracker.update({"feature_diversity": 0.9, "classes": 0.15})
    tracker.check(0, patience=10)
    assert [sign.name for sign in tracker.check(10, patience=10)[0]] == ["lost_classes"]


@pytest.mark.slow
def test_samples_of_one_class_are_noticed(tmp_path: Path, test_data: Callable[[str], Path]) -> None:
    fails = ["experiment=mnist_dense_fails", f"data.root={test_data('mnist')}", "data.num_samples=500"]
    health = trained(tmp_path, *fails, "trainer.max_steps=200", "evaluate_every=100")
    assert "lost_classes" in {entry["sign"] for entry in health["signs"] if entry["where"] == "evaluation"}


@pytest.mark.parametrize("name", [slow(name) for name in HEALTHY])
@pytest.mark.usefixtures("recording")
def test_healthy_trainings_are_left_alone(tmp_path: Path, test_data: Callable[[str], Path], name: str) -> None:
    data = [f"data.root={test_data('mnist')}"] if "data=mnist" in HEALTHY[name] else []
    usual = ["trainer.log_every_n_steps=16", "callbacks.health.patience=300", "evaluate_every=250"]
    health = trained(tmp_path, *usual, "data.num_samples=500", *data, *HEALTHY[name])
    assert health["signs"] == []


def test_signs_come_and_go_with_patience() -> None:
    tracker = SignTracker(weight=1.0)

    def update(step: int, diversity: float) -> tuple[list[str], list[str]]:
        tracker.update({"diversity": diversity})
        begun, over = tracker.check(step, patience=10)
        return [sign.name for sign in begun], [sign.name for sign in over]

    assert (
        update(0, 0.9) == update(4, 0.01) == update(8, 0.9) == update(12, 0.01) == update(20, 0.01) == ([], [])
    )  # for a moment
    assert update(22, 0.01) == (["lost_diversity"], [])
    assert update(30, 0.01) == update(34, 0.9) == ([], [])
    assert update(40, 0.9) == ([], ["lost_diversity"])


@pytest.mark.parametrize(
    ("loss", "swings"),
    [
        (lambda i: 1 + math.sin(i / 5), True),
        (lambda i: 3 * math.exp(-i / 20), False),  # falls once
        (lambda i: 1 + (-1) ** i, False),  # flickers
        (lambda i: 1 + 0.1 * math.sin(i / 5), False),
    ],
)
def test_what_an_oscillation_is(loss: Callable[[int], float], swings: bool) -> None:
    assert (swing(deque(map(loss, range(64)), maxlen=64)) > 1) == swings
    assert swing(deque(map(loss, range(63)), maxlen=64)) == 0


# What follows from a collapse ------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_only_if_told_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stopping = [*TINY_POINTS, sabotaged(20), "callbacks.health.on_collapse=stop", "trainer.max_steps=200"]
    health = trained(tmp_path, *stopping)
    stopped = health["signs"][-1]["noticed"]
    assert f"stopped at step {stopped}" in caplog.text
    assert stopped < 200
    trained(tmp_path, *stopping, f"resume={tmp_path}")
    assert read_checkpoint(latest_checkpoint(tmp_path))["global_step"] == stopped
    trained(tmp_path, *stopping, f"resume={tmp_path}", "callbacks.health.on_collapse=warn")
    assert read_checkpoint(latest_checkpoint(tmp_path))["global_step"] == 200


@pytest.mark.parametrize("value", [0.0, slow(math.inf)])
def test_a_rewound_run_goes_on_with_other_random_numbers(tmp_path: Path, value: float) -> None:
    rewinding = [*TINY_POINTS, "checkpoint_every=5", sabotaged(12, value), "callbacks.health.on_collapse=rewind"]
    rewinding += ["callbacks.health.patience=20", "trainer.log_every_n_steps=2"]
    health = trained(tmp_path / "a", *rewinding, "trainer.max_steps=60")
    [(start, end)] = [(entry["from"], entry["to"]) for entry in health["rewinds"]]
    assert end == {0.0: 10, math.inf: 5}[value]  # a collapse shows late, so it is the last but one before it shows
    assert all(entry["until"] == start for entry in health["signs"])
    # the names of files of one second do not sort by time
    assert sorted(step for step, _ in scalars(tmp_path / "a")["loss_g/total"]) == list(range(2, 61, 2))
    state = read_checkpoint(latest_checkpoint(tmp_path / "a"))
    assert (state["global_step"], state["rewinds"]) == (60, 1)

    trained(tmp_path / "never harmed", *TINY_POINTS, "trainer.max_steps=60")
    unharmed = read_checkpoint(latest_checkpoint(tmp_path / "never harmed"))
    assert not equal(state["state_dict"], unharmed["state_dict"])

    trained(tmp_path / "b", *rewinding, "trainer.max_steps=40")
    trained(tmp_path / "b", *rewinding, "trainer.max_steps=60", f"resume={tmp_path / 'b'}")
    resumed = read_checkpoint(latest_checkpoint(tmp_path / "b"))
    assert equal(state["state_dict"], resumed["state_dict"]), "the checkpoint keeps the number of the random stream"


def test_a_rewind_keeps_the_best_value_whose_checkpoint_is_there(tmp_path: Path) -> None:
    measured = ["evaluate_every=10", "data.num_samples=64", "callbacks.health.on_collapse=rewind"]
    trained(tmp_path, *TINY_POINTS, *measured, "trainer.max_steps=40", "checkpoint_every=20", NO_DIVERSITY)
    folder = tmp_path / "checkpoints"
    state = read_checkpoint(folder / "last.ckpt")
    assert (state["global_step"], rewind(tmp_path, 40)) == (40, 20)
    best = {name: score["best"] for name, score in state["callbacks"]["Evaluation"].items()}
    rewound = read_checkpoint(folder / "last.ckpt")["callbacks"]["Evaluation"]
    assert best == {name: score["best"] for name, score in rewound.items()}
    assert any(score["best"]["step"] > 20 for score in rewound.values())
    assert all(score["last"]["step"] == 20 for score in rewound.values())


def test_a_job_that_slurm_starts_again_goes_on_with_modules_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GANFORGE_TRUST")  # nobody needs to be trusted with one's own command line
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for steps in (20, 40):
        trained(tmp_path, *TINY_POINTS, sabotaged(1000), f"trainer.max_steps={steps}")
    assert read_checkpoint(latest_checkpoint(tmp_path))["global_step"] == 40
    assert sorted(step for step, _ in scalars(tmp_path)["loss_g/total"]) == list(range(4, 41, 4))


def test_games_without_the_usual_terms_are_watched_for_the_rest() -> None:
    tracker = SignTracker(weight=1.0)
    tracker.update({"accuracy/fake": 1.0, "accuracy/real": 1.0})  # a loss_g of other terms
    assert [sign.name for sign in tracker.check(100, patience=1)[0]] == []
    assert [sign.name for sign in tracker.check(200, patience=1)[0]] == ["discriminator_wins"]


def test_without_a_healthy_checkpoint_a_collapse_stops(tmp_path: Path) -> None:
    harmed = [*TINY_POINTS, sabotaged(20), "checkpoint_every=1000"]
    trained(tmp_path, *harmed, "trainer.max_steps=40")
    health = trained(
        tmp_path, *harmed, f"resume={tmp_path}", "callbacks.health.on_collapse=rewind", "trainer.max_steps=200"
    )
    assert health["rewinds"] == []
    assert read_checkpoint(latest_checkpoint(tmp_path))["global_step"] < 200


def test_a_rewind_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the run is killed before its next checkpoint, and so begins at the rewound one again."""
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(
        default_root_dir=tmp_path, global_step=20, is_global_zero=True, loggers=[], strategy=strategy
    )
    for rewinds in (
        [{"from": 60, "to": 20}],
        [{"from": 60, "to": 20}],
        [{"from": 60, "to": 20}, {"from": 50, "to": 20}],
    ):
        health = Health()
        health.rewinds = rewinds
        health.on_train_start(trainer, SimpleNamespace(games=[]))
    assert [message.partition(", continuing")[0] for message in caplog.messages] == [
        "step 20: went back from step 60",
        "step 20: went back from step 50",
    ]


REWINDING = [*HASTY[1:], *TINY_POINTS, *TOO_STRONG, "trainer=cpu", "trainer.max_steps=400", "evaluate_every=50"]
REWINDING += ["callbacks.health.on_collapse=rewind", "callbacks.health.patience=20", "trainer.log_every_n_steps=2"]
REWINDING += ["checkpoint_every=5", "hydra.run.dir=run"]


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["torchrun", "lightning"])  # which starts the other ranks at each fit
def test_two_devices_rewind_as_one_until_it_is_enough(tmp_path: Path, starter: str) -> None:
    if starter == "torchrun":
        done, _ = run_ranks(2, "train.py", *REWINDING, cwd=tmp_path)
    else:
        done = run("train.py", *REWINDING, "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_json(tmp_path / "run" / "metrics.json")["health"]["rewinds"]) == 3
    assert "the generator collapsed again after 3 rewinds" in done.stderr
    assert "Finished" not in done.stderr
