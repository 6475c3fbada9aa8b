"""The alternating step."""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, TINY_DCGAN, TINY_MLP, TINY_POINTS, composed, equal, fitted, scalars, slow, tiny
from lightning.pytorch import Callback
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ganforge.cli.trainer_options import PRECISIONS
from ganforge.data.base import Batch
from ganforge.experiment.build import build
from ganforge.models.ema import MovingAverage
from ganforge.models.gan import GAN, Game, LossTerms
from ganforge.regularizers import R1, Critic, Scored
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_unit_range

GOLDEN = Path(__file__).parent / "golden"


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


class Updates(Callback):
    """What each optimizer call changed: (generator changed, discriminator changed)."""

    def __init__(self) -> None:
        self.changes: list[tuple[bool, bool]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._compare(pl_module)
        players = [any(p is q for q in optimizer.param_groups[0]["params"]) for p in self._first(pl_module)]
        self.changes.append(tuple(players))  # type: ignore[arg-type]
        self.before = [weights(pl_module.generator), weights(pl_module.discriminator)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._compare(pl_module)
        del self.before

    @staticmethod
    def _first(pl_module: Any) -> list[nn.Parameter]:
        return [next(network.parameters()) for network in (pl_module.generator, pl_module.discriminator)]

    def _compare(self, pl_module: Any) -> None:
        if not hasattr(self, "before"):
            return
        now = [weights(pl_module.generator), weights(pl_module.discriminator)]
        changed = tuple(not equal(a, b) for a, b in zip(self.before, now, strict=True))
        assert changed == self.changes[-1], "an optimizer call must change its own network, and nothing else"


@pytest.mark.parametrize(("discriminator_steps", "generator_steps"), [(1, 1), (3, 1), (1, 2)])
def test_each_update_changes_its_own_network_only(
    tmp_path: Path, discriminator_steps: int, generator_steps: int
) -> None:
    updates = Updates()
    options = [f"model.discriminator_steps={discriminator_steps}", f"model.generator_steps={generator_steps}"]
    fitted(tmp_path, *TINY_POINTS, *options, callbacks=[updates])
    one_step = [(False, True)] * discriminator_steps + [(True, False)] * generator_steps
    assert updates.changes == one_step * 2


class Listener(Callback):
    """Hears the hooks around updates, without which Lightning's way through them is left out."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.heard.append("backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.heard.append("step")


def test_hooks_are_called_for_who_has_them_and_change_nothing(tmp_path: Path) -> None:
    options = [*TINY_POINTS, "model.gradient_clip=1", "trainer.max_steps=5"]
    listener = Listener()
    heard = fitted(tmp_path / "heard", *options, callbacks=[listener])
    silent = fitted(tmp_path / "silent", *options)
    assert listener.heard == ["backward", "step"] * 2 * 5
    assert heard.trainer.global_step == silent.trainer.global_step == 5
    assert equal(weights(heard.model), weights(silent.model))


class Rows(Callback):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.validated: list[int] = []
        self.rates: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.append(batch.size)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.step_log.is_due:
            self.rates[trainer.global_step] = pl_module.step_log.values["time/images_per_second"]

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize("discriminator_steps", [1, 5])
def test_everything_counts_steps(tmp_path: Path, discriminator_steps: int) -> None:
    rows = Rows()
    options = [f"model.discriminator_steps={discriminator_steps}", "trainer.max_steps=12", "evaluate_every=4"]
    options += ["data.num_samples=8", "trainer.log_every_n_steps=3", "sample_every=5", "checkpoint_every=100"]
    experiment = fitted(tmp_path, *TINY_POINTS, *options, callbacks=[rows])
    assert experiment.trainer.global_step == 12
    assert rows.sizes == [20 * discriminator_steps] * 12
    assert rows.validated == [4, 8, 12]
    assert [step for step, _ in scalars(tmp_path)["loss_g/total"]] == [3, 6, 9, 12]
    assert list(rows.rates) == [3, 6, 9, 12], "from the first time on, also after a validation"
    assert min(rows.rates.values()) > 0
    pictures = sorted(path.name for path in (tmp_path / "samples").glob("step-*.png"))
    assert pictures == [f"step-{step:08d}.png" for step in (0, 5, 10, 12)]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert torch.load(tmp_path / "checkpoints" / "previous.ckpt", weights_only=True)["global_step"] == 0


def test_epochs_limit_a_run(tmp_path: Path) -> None:
    experiment = fitted(tmp_path, *TINY_POINTS, "trainer.max_steps=-1", "trainer.max_epochs=2")
    assert experiment.trainer.global_step == 10
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10


class Flops(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = FlopCounterMode(display=False)
        self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.total = self.mode.get_total_flops()


@pytest.mark.parametrize("regularizer", ["none", "r1", "r2", "[r1,r2]"])
@pytest.mark.parametrize("model", ["gan", "dcgan"])
def test_a_step_costs_the_minimum(tmp_path: Path, fake_mnist: Path, model: str, regularizer: str) -> None:
    flops = Flops()
    options = [f"model={model}", f"data.root={fake_mnist}", "data.batch_size=16", "trainer.max_steps=1"]
    options += [f"regularizer={regularizer}", "trainer.log_every_n_steps=10", "sample_every=100"]
    experiment = fitted(tmp_path, *options, callbacks=[flops])
    generator, discriminator = experiment.model.generator, experiment.model.discriminator

    def forward(network: nn.Module, value: torch.Tensor) -> tuple[int, int]:
        """Operations of a forward pass, and of its first layer."""
        with FlopCounterMode(display=False) as whole:
            network(value, None)
        first = next(m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        with FlopCounterMode(display=False) as part:
            first(value.flatten(1) if isinstance(first, nn.Linear) else value)
        return whole.get_total_flops(), part.get_total_flops()

    g, g_first = forward(generator, torch.randn(16, 100))
    d, d_first = forward(discriminator, torch.randn(16, 1, 28, 28))
    # G: one forward; gradients of weights, and of inputs but for the latent. D: forward on real, fake and fake again;
    # its own update needs both gradients twice but for the images, G's update those of inputs only.
    minimum = (g + g + g - g_first) + (3 * d + 2 * (d + d - d_first) + d)
    # A penalty shares the forward. It needs the gradient of inputs (d), and that of this gradient: with respect to the
    # gradients that flow through the layers and to the weights (2 d). Nothing else reaches a piecewise linear D.
    minimum += (regularizer.count("r1") + regularizer.count("r2")) * 3 * d
    assert flops.total == pytest.approx(minimum, rel=0.01)


class OwnLoss(GAN):
    """Overrides D's loss without a call of super()."""

    def discriminator_loss(self, game: Game, batch: Batch, real: Scored, fake: Scored) -> LossTerms:
        return {"own": fake.logits.mean() - real.logits.mean()}


def test_an_overridden_loss_keeps_penalties_and_log(tmp_path: Path) -> None:
    options = [f"model._target_={__name__}.OwnLoss", "regularizer=[r1,r2]", "trainer.log_every_n_steps=1"]
    model = fitted(tmp_path, *TINY_POINTS, *options).model
    assert model.step_log.terms.keys() >= {"loss_d/own", "loss_d/r1", "loss_d/r2", "loss_d/total"}
    assert {"logits/real", "diversity", "gradient_norm/d", "slope"} <= model.step_log.values.keys()


@pytest.mark.parametrize("needs_real", [False, True])
def test_an_update_scores_samples_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_real: bool) -> None:
    """Real and fake in D's update, whatever the penalties; fake in G's, and real only where the loss compares them."""
    monkeypatch.setattr("ganforge.losses.NonSaturating.needs_real", needs_real)
    experiment = build(composed(*QUICK, *TINY_POINTS, "regularizer=[r1,r2]", "trainer.max_steps=1"), tmp_path)
    discriminator, calls = experiment.model.discriminator, []
    discriminator.register_forward_hook(
        lambda network, *_: calls.append(all(p.requires_grad for p in network.parameters()))
    )
    experiment.trainer.fit(experiment.model, datamodule=experiment.data)
    assert calls == [True, True, False, False][: 3 + needs_real], "while G is updated, D's weights take no gradients"
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


@pytest.mark.parametrize("model", ["gan", "dcgan"])
def test_penalties_under_bf16_agree_with_float32(tmp_path: Path, fake_mnist: Path, model: str) -> None:
    """They share a forward pass under autocast: within 1%."""
    options = [f"model={model}", f"data.root={fake_mnist}", "data.batch_size=64", "trainer.max_steps=30"]
    experiment = fitted(tmp_path, *options, *(TINY_MLP if model == "gan" else TINY_DCGAN), "regularizer=r1")
    discriminator, batch = experiment.model.discriminator.train(), experiment.data.train_dataloader().batch(0)
    real = to_unit_range(batch.real)

    def penalty() -> float:
        scored = Critic(discriminator)(real, differentiable=True)
        return R1(1)(Critic(discriminator), scored, scored).item()

    expected = penalty()
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("options", [{"decay": 0.5**0.5}, {"half_life": 64}])
def test_moving_average_follows_its_definition(options: dict[str, Any]) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    average = MovingAverage(network, every=2, **options)
    expected = deepcopy(network.state_dict())
    for update in range(30):
        for value in (*network.parameters(), *network.buffers()):
            value.data.add_(1)
        average.step(network, 2 * update + 1, images=32)
        average.step(network, 2 * update + 2, images=32)
        decay = min(0.5, 0.5 ** (20 / (update + 1))) if update else 0.0  # a half-life of a twentieth of the updates
        for name, value in network.state_dict().items():
            floats = value.is_floating_point()
            expected[name] = expected[name] * decay + value * (1 - decay) if floats else value.clone()
    torch.testing.assert_close(average.module.state_dict(), expected)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("options", [{"rampup": 0.0}, {"rampup": -1.0}, {"every": 0}, {"half_life": -1}])
def test_senseless_options_of_the_moving_average_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"moving_average_{next(iter(options))}="):
        MovingAverage(nn.Linear(1, 1), **options)


def test_sampling_uses_the_average_and_leaves_no_trace(tmp_path: Path, fake_mnist: Path) -> None:
    options = ["model=dcgan", f"data.root={fake_mnist}", "data.batch_size=16", "trainer.max_steps=6"]
    options += ["model.moving_average_every=2", *TINY_DCGAN]
    initial = build(composed(*options), tmp_path / "x").model
    model = fitted(tmp_path, *options).model
    assert model.average is not None
    raw, averaged = weights(model.generator), weights(model.average.module)
    assert raw.keys() == averaged.keys()
    assert not equal(raw, averaged)
    assert not equal(averaged, weights(initial.generator))
    before = deepcopy(model.state_dict())
    state = torch.get_rng_state()
    samples = model.samples(70, seed=3)
    assert equal(before, model.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.generator.modules())
    assert torch.equal(samples[:5], model.samples(5, seed=3)), "the same seed draws the same, whatever the number"
    assert not torch.equal(samples[:5], model.samples(5, seed=4))
    model.average = None
    assert not torch.equal(samples[:5], model.samples(5, seed=3))


def test_frozen_layers_stay_frozen_and_modes_as_they_were(tmp_path: Path, fake_mnist: Path) -> None:
    """Parts of a network that somebody froze, such as pretrained ones."""
    options = ["model=dcgan", f"data.root={fake_mnist}", "data.batch_size=16", *TINY_DCGAN]
    data, model, trainer, _ = build(composed(*QUICK, *options), tmp_path)
    frozen, resting = next(model.discriminator.parameters()), next(model.generator.children())
    frozen.requires_grad_(False)
    resting.eval()
    before = frozen.clone()
    trainer.fit(model, datamodule=data)
    assert torch.equal(frozen, before)
    assert not frozen.requires_grad
    model.average = None
    model.generator.train()
    resting.eval()
    model.samples(4, seed=0)
    assert model.generator.training
    assert not resting.training


def test_samples_do_not_disturb_training(tmp_path: Path, fake_mnist: Path) -> None:
    options = ["model=dcgan_5x5", f"data.root={fake_mnist}", "data.batch_size=16", "trainer.max_steps=4"]
    options += TINY_DCGAN
    often = fitted(tmp_path / "often", *options, "sample_every=1", "evaluate_every=1", "data.num_samples=64")
    never = fitted(tmp_path / "never", *options, "sample_every=100", "checkpoint_every=1")
    assert equal(often.model.state_dict(), never.model.state_dict())


def test_options_of_the_step(tmp_path: Path) -> None:
    options = ["regularizer=[r1,r2,gradient_penalty]", "regularizer.r1.every=2", "model.gradient_clip=0.01"]
    options += ["schedule=linear", "trainer.max_steps=4", "trainer.log_every_n_steps=1", "loss=wasserstein"]
    fitted(tmp_path, *TINY_POINTS, *options)
    logged = scalars(tmp_path)
    assert [step for step, _ in logged["loss_d/r1"]] == [2, 4]
    assert [step for step, _ in logged["loss_d/gradient_penalty"]] == [1, 2, 3, 4]
    assert all(norm > 0.0101 for _, norm in logged["gradient_norm/d"]), "logged as it was before it was clipped"
    for network in ("generator", "discriminator"):
        rates = [rate for _, rate in logged[f"schedule/model.{network}_optimizer.lr"]]
        assert rates == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
    total = dict(logged["loss_d/total"])
    parts = [logged[f"loss_d/{name}"] for name in ("adversarial", "r1", "r2", "gradient_penalty")]
    assert total[4] == pytest.approx(sum(value for part in parts for step, value in part if step == 4), rel=1e-5)


def test_clipping(tmp_path: Path) -> None:
    """With steps of plain SGD at rate 1, the weights move by what was clipped."""
    options = ["optimizer@model.discriminator_optimizer=sgd", "model.discriminator_optimizer.lr=1"]
    options += ["model.discriminator_optimizer.momentum=0", "model.gradient_clip=0.01", "trainer.max_steps=1"]
    before = build(composed(*TINY_POINTS), tmp_path / "unused").model.discriminator
    after = fitted(tmp_path, *TINY_POINTS, *options).model.discriminator
    moved = [p - q for p, q in zip(before.parameters(), after.parameters(), strict=True)]
    assert nn.utils.get_total_norm(moved).item() == pytest.approx(0.01, rel=1e-3)


class Norms(Callback):
    """Of the gradients that the optimizers get."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad.double() for parameter in optimizer.param_groups[0]["params"]]
        self.norms.append(nn.utils.get_total_norm(gradients).item())


@pytest.mark.parametrize("precision", [p if p in ("32-true", "bf16-mixed") else slow(p) for p in PRECISIONS])
@pytest.mark.parametrize("clip", ["null", "0.5"])
def test_every_precision_clips_penalizes_and_averages(tmp_path: Path, precision: str, clip: str) -> None:
    options = [f"trainer.precision={precision}", "regularizer=[r1,r2,gradient_penalty]", f"model.gradient_clip={clip}"]
    options += [*TINY_POINTS, "model.moving_average_every=1", "evaluate_every=2"]
    norms = Norms()
    model = fitted(tmp_path, *options, callbacks=[norms]).model
    assert all(0 < model.step_log.terms[f"loss_d/{name}"].item() < 100 for name in ("r1", "r2", "gradient_penalty"))
    assert (max(norms.norms) <= 0.51) == (clip != "null")
    assert model.average is not None
    samples = model.samples(8, seed=1)
    assert samples.isfinite().all()
    assert samples.float().std() > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_points_reach_the_parabola(tmp_path: Path) -> None:
    model = fitted(tmp_path, "model=gan", "data=quadratic", "trainer.max_steps=20000", "sample_every=20000").model
    x, y = model.samples(2000, seed=1).T
    assert ((y - x.square() - 5).abs() < 1).float().mean() >= 0.9
    assert (torch.histc(x[x.abs() <= 5], 10, -5, 5) > 0).float().mean() >= 0.8


@pytest.mark.slow  # torch.compile takes as long as 30 other tests
@pytest.mark.parametrize("spectral", ["false", "true"])
def test_compiled_networks_train_as_the_others(tmp_path: Path, spectral: str) -> None:
    options = [*TINY_POINTS, "regularizer=r1", f"model.discriminator.spectral={spectral}"]
    plain = fitted(tmp_path / "plain", *options).model
    compiled = fitted(tmp_path / "compiled", *options, "model.compile=true").model
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    torch.testing.assert_close(dict(plain.state_dict()), dict(compiled.state_dict()), rtol=1e-4, atol=1e-6)


def test_gradient_penalty_refuses_batch_norm() -> None:
    with pytest.raises(Exception, match=r"model\.discriminator\.normalization=layer or none"):
        build(composed("model=dcgan", "regularizer=gradient_penalty"), Path("unused"))
    build(composed("model=dcgan", "regularizer=r1"), Path("unused"))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                with torch.no_grad():
                    next(pl_module.discriminator.parameters()).fill_(float("nan"))

    options = [*TINY_POINTS, "trainer.max_steps=20", "checkpoint_every=2"]
    with pytest.raises(UserError, match=r"loss_d/adversarial is NaN or infinite at step 7"):
        fitted(tmp_path, *options, callbacks=[Poison()])
    good = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert good["global_step"] == 6
    assert all(value.isfinite().all() for value in good["state_dict"].values())


TRACES = {
    "gan": ["model=gan", *TINY_MLP],
    "dcgan": ["model=dcgan", *TINY_DCGAN],
    "dcgan_r1_r2": ["model=dcgan", "regularizer=[r1,r2]", *TINY_DCGAN],
    "dcgan_5x5": ["model=dcgan_5x5", *TINY_DCGAN],
    "wgan_gp": [
        "model=gan",
        "loss=wasserstein",
        "regularizer=gradient_penalty",
        "model.discriminator_steps=2",
        *TINY_MLP,
    ],
    **{name: tiny(name) for name in ("cgan", "cgan_conv", "cgan_projection", "lapgan", "lapgan_conditional")},
    **{name: tiny(name) for name in ("sngan", "sngan_conditional", "r3gan", "fastgan")},
    "compact": tiny("compact_conditional"),
    "stylegan2": tiny("stylegan2_conditional", "model.path_length_weight=2", "regularizer.r1.every=4"),
    **{name: tiny(name, "data=pairs", "data.image_size=28") for name in ("srgan", "pix2pix")},
}


RARE = ("lapgan", "dcgan_5x5", "sngan", "sngan_conditional", "fastgan", "cgan_conv")


@pytest.mark.parametrize("name", [slow(name) if name in RARE else name for name in TRACES])
def test_golden_trace(tmp_path: Path, fake_mnist: Path, pictures: Path, name: str) -> None:
    """20 seeded steps give the losses they gave before. In double precision, so that another processor gives them too.

    A change that is meant to change them says why; GANFORGE_UPDATE_GOLDEN=1 then writes new ones.
    """
    for path in pictures.rglob("*.jpg"):  # which another decoder decodes another way
        path.unlink()
    root = pictures if "data=pairs" in TRACES[name] else fake_mnist
    options = [f"data.root={root}", "data.batch_size=16", "trainer.max_steps=20", "trainer.precision=64-true"]
    if root == pictures:
        options.append("data.batch_size=4")
    fitted(tmp_path, *TRACES[name], *options, "trainer.log_every_n_steps=1")
    kept = ("loss_d/total", "loss_g/total", "gradient_norm/g")
    trace = {tag: [v for _, v in values] for tag, values in scalars(tmp_path).items() if tag.endswith(kept)}
    path = GOLDEN / f"{name}.json"
    if os.environ.get("GANFORGE_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(trace, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert trace.keys() == golden.keys()
    for key, values in trace.items():
        assert values == pytest.approx(golden[key], rel=1e-4), key
