"""Trainer options that ganforge does not use, and what to use instead."""

from omegaconf import DictConfig

from ganforge.runtime.devices import DDP
from ganforge.runtime.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true")
SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
STRATEGIES = ("auto", DDP)
"""Other strategies pickle the model, or expect gradients of both networks in every backward pass."""

OTHER_WORDS = {
    "fast_dev_run": "use debug=fast (20 steps, with a checkpoint, samples and an evaluation)",
    "limit_train_batches": "set trainer.max_steps= instead",
    "overfit_batches": "use debug=overfit (one batch; data.overfit_batches=<n> with it takes n)",
    "limit_val_batches": "set data.num_samples=, or evaluate_every=null to skip evaluation",
    "limit_test_batches": "use evaluate.py with num_samples=",
    "limit_predict_batches": "use sample.py with num_samples=",
    "gradient_clip_val": "set model.gradient_clip= (norm per network)",
    "gradient_clip_algorithm": "set model.gradient_clip= (norm per network)",
    "accumulate_grad_batches": "set data.batch_size=; gradients are not accumulated",
    "check_val_every_n_epoch": "set evaluate_every= (in steps)",
    "num_sanity_val_steps": "set evaluate_every= (in steps); there is no sanity check",
    "min_steps": "set trainer.max_steps=",
    "min_epochs": "set trainer.max_steps=",
    "default_root_dir": "set hydra.run.dir=",
    "logger": "use logger=tensorboard, csv, wandb, none, or several: logger=[tensorboard,csv]",
    "callbacks": "use +callbacks.<name>= to add one",
    "enable_checkpointing": "use ~callbacks.checkpoints to train without checkpoints",
    "use_distributed_sampler": "the data module shards batches itself",
    "reload_dataloaders_every_n_epochs": "not needed: batches depend only on seed and step",
    "gpus": "set trainer.devices=",
    "barebones": "use logger=none, ~callbacks.<name> and evaluate_every=null to leave out what takes time",
}


def check_trainer(trainer: DictConfig) -> None:
    """Raise UserError for Trainer options that ganforge replaces with its own."""
    for option, instead in OTHER_WORDS.items():
        if option in trainer:
            raise UserError(f"trainer.{option} is not supported: {instead}")
    precision, strategy = str(trainer.precision), trainer.strategy
    if precision in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision={precision}: gradient clipping and penalties do not support fp16 loss scaling here. "
            "Use trainer.precision=bf16-mixed"
        )
    if precision not in (*PRECISIONS, *SHORT):
        raise UserError(f"trainer.precision={precision}: must be one of {', '.join(PRECISIONS)}")
    if strategy not in STRATEGIES:
        raise UserError(f"trainer.strategy={strategy}: must be auto, which is DDP on several devices")
