"""Several processes train the experiment that one trains."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DCGAN, TINY_MLP, TINY_POINTS, composed, fit, fitted, run, scalars, slow, tiny
from forking import Ranks
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from ganforge.experiment.build import build
from ganforge.runtime.devices import device_count, strategy, uses_sync_batchnorm
from ganforge.runtime.errors import UserError

MODELS = {
    # the loss needs means over all ranks
    "mlp": [
        *("model=gan", *TINY_MLP, "loss=relativistic_average", "model.pack=2"),
        "model.discriminator.spectral=true",
    ],
    "dcgan": [
        "model=dcgan",
        *TINY_DCGAN,
        "model.generator.normalization=instance",
        "model.discriminator.normalization=instance",
        *("augment=[ada,diffaugment]", "augment.ada.ramp_images=100", "augment.ada.every=1", "augment.ada.target=0"),
    ],
    "cgan": tiny("cgan"),
    "lapgan": tiny("lapgan_conditional", "model.discriminator.dropout=0"),
    "srgan": tiny("srgan", "data=pairs", "data.image_size=28", "model.generator.normalization=none"),
}
MODELS["srgan"].append("model.discriminator.normalization=none")


@pytest.mark.parametrize("name", ["mlp", *map(slow, ("lapgan", "dcgan", "cgan", "srgan"))])
def test_two_processes_train_as_one(
    tmp_path: Path, fake_mnist: Path, pictures: Path, two_ranks: Ranks, name: str
) -> None:
    root = pictures if name == "srgan" else fake_mnist
    options = [*MODELS[name], f"data.root={root}", "data.batch_size=16", "trainer=cpu", "trainer.max_steps=8"]
    options += ["trainer.precision=64-true", "trainer.log_every_n_steps=1", "model.discriminator_steps=2"]
    penalties = ["r1", "r2", "gradient_penalty", "dragan", *(["mismatch"] if name == "cgan" else [])]
    options += [f"regularizer=[{','.join(penalties)}]", "trainer.enable_progress_bar=false"]
    fit(tmp_path / "1", *options, "trainer.devices=1")
    two_ranks.call(fit, tmp_path / "2", *options, "trainer.devices=2")
    logged = [scalars(tmp_path / str(devices)) for devices in (1, 2)]
    game = "level_14/" if name == "lapgan" else ""
    logged_by_all = [
        "loss_d/total",
        *(f"loss_d/{penalty}" for penalty in penalties),
        "loss_g/total",
        "gradient_norm/d",
        "gradient_norm/g",
    ]
    if name != "mlp":  # relativistic logits have no threshold
        logged_by_all += ["accuracy/real", "accuracy/fake"]
    for tag in (*logged_by_all, "logits/real", "logits/fake", "slope", "diversity"):
        tag = game + tag
        one, two = ([value for _, value in values[tag]] for values in logged)
        assert len(one) == 8
        assert two == pytest.approx(one, rel=1e-4), tag
    states = [
        torch.load(tmp_path / str(d) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for d in (1, 2)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-8)


class SameWeights(Callback):
    """Notes the steps after which both ranks have the same weights."""

    def __init__(self) -> None:
        self.equal_at: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        own = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        both = [torch.empty_like(own) for _ in range(2)]
        torch.distributed.all_gather(both, own)
        if torch.equal(*both):
            self.equal_at.append(trainer.global_step)


def fit_and_compare(folder: Path, *overrides: str) -> tuple[list[int], float]:
    same_weights = SameWeights()
    model = fitted(folder, *overrides, callbacks=[same_weights]).model
    return same_weights.equal_at, torch.cat([buffer.double().flatten() for buffer in model.buffers()]).sum().item()


@pytest.mark.parametrize("name", ["dcgan", slow("stylegan2")])
def test_ranks_keep_equal_weights_whose_buffers_differ(
    tmp_path: Path, fake_mnist: Path, two_ranks: Ranks, name: str
) -> None:
    """The statistics of BatchNorm, and StyleGAN2's mean w and mean path length."""
    options = [*tiny(name), f"data.root={fake_mnist}", "data.batch_size=16", "trainer=cpu"]
    options += ["trainer.max_steps=5", "trainer.devices=2"]
    if name == "stylegan2":
        options += ["model.path_length_weight=2", "model.path_length_every=2"]
    (equal_at, first), (_, second) = two_ranks.call(fit_and_compare, tmp_path / "run", *options)
    assert equal_at == [1, 2, 3, 4, 5]
    assert first == second, "the last checkpoint gave all ranks the buffers of rank 0"


def test_batch_norm_on_several_cpus_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(composed("model=dcgan", *TINY_DCGAN, "trainer=cpu", "trainer.devices=2"), tmp_path)
    assert "BatchNorm is not synchronized across CPU processes: each of the 2 normalizes" in caplog.text


def slurm(node: int, **others: str) -> dict[str, str]:
    """What SLURM tells a task of a job with one task on each of two nodes."""
    job = {"JOB_ID": "4321", "JOB_NAME": "train", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2"}
    task = {"NODELIST": "127.0.0.1", "PROCID": str(node), "NODEID": str(node), "LOCALID": "0", **others}
    return {f"SLURM_{name}": value for name, value in (job | task).items()}


@pytest.mark.slow
def test_two_nodes_under_slurm_train_as_one_process(tmp_path: Path) -> None:
    options = [*TINY_POINTS, "trainer.precision=64-true", "trainer.log_every_n_steps=1", "trainer.max_steps=4"]
    options += ["evaluate_every=2", "checkpoint_every=2"]
    start = partial(run, "train.py", *options, "trainer=slurm", "trainer.accelerator=cpu", cwd=tmp_path)
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(start, **slurm(node)) for node in (0, 1)]
        for node in nodes:
            assert node.result().returncode == 0, node.result().stderr
        again = [pool.submit(start, "trainer.max_steps=8", **slurm(node, RESTART_COUNT="1")) for node in (0, 1)]
    assert all(node.result().returncode == 0 for node in again)
    assert "Resuming after step 4 with trainer.max_steps=8." in again[0].result().stderr, (
        "a job that SLURM starts again goes on"
    )
    fitted(tmp_path / "one", *options, "trainer=cpu", "trainer.max_steps=8")
    [both] = tmp_path.glob("logs/runs/*/*")
    assert both.name == "4321", "all tasks have the folder of the job"
    one, two = (scalars(folder)["loss_g/total"] for folder in (tmp_path / "one", both))
    assert [step for step, _ in two] == list(range(1, 9))
    assert [value for _, value in two] == pytest.approx([value for _, value in one], rel=1e-4)


def test_strategy_is_chosen_where_it_was_left_to_us(tmp_path: Path) -> None:
    def config(*overrides: str) -> tuple[int, str]:
        trainer = composed(*TINY_POINTS, *overrides).trainer
        return device_count(trainer), strategy(trainer)

    assert config("trainer=cpu") == (1, "auto")
    assert config("trainer=cpu", "trainer.devices=2") == (2, "ddp_find_unused_parameters_true")
    assert config("trainer=cpu", "trainer.devices=2", "trainer.strategy=ddp") == (2, "ddp")
    assert config("trainer=gpu", "trainer.devices=[0,1,2]", "trainer.num_nodes=2")[0] == 6
    # torch has none for CPUs, and one device has nothing to synchronize
    assert not uses_sync_batchnorm(composed("trainer=cpu", "trainer.devices=2").trainer)
    assert not uses_sync_batchnorm(composed("trainer=gpu").trainer)
    assert uses_sync_batchnorm(composed("trainer=gpu", "trainer.devices=2").trainer) == torch.cuda.is_available()
    assert uses_sync_batchnorm(composed("trainer=gpu", "trainer.sync_batchnorm=true").trainer)
    with pytest.raises(UserError, match=r"data\.batch_size=20 is not divisible by 3 devices: use 18"):
        build(composed(*TINY_POINTS, "trainer=cpu", "trainer.devices=3"), tmp_path)
