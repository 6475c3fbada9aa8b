"""Options of Lightning's trainer that do nothing here, or harm, and the words that do the same."""

from omegaconf import DictConfig

from ganforge.runtime.devices import DDP
from ganforge.runtime.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true")
SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
STRATEGIES = ("auto", DDP)
"""Others copy the model, or want a gradient of both networks at every update."""

OTHER_WORDS = {
    "fast_dev_run": "debug=fast takes 20 steps, with a checkpoint, samples and an evaluation on the way",
    "limit_train_batches": "an epoch is all of the data here; trainer.max_steps= trains for less",
    "overfit_batches": "debug=overfit trains on one batch over and over, +data.overfit_batches=<n> on n",
    "limit_val_batches": "data.num_samples= is how many samples a validation measures, evaluate_every=null for none",
    "limit_test_batches": "evaluate.py measures a trained run, num_samples= samples of it",
    "limit_predict_batches": "sample.py draws from a trained run, num_samples= samples",
    "gradient_clip_val": "model.gradient_clip= is the largest norm of a network's gradient",
    "gradient_clip_algorithm": "model.gradient_clip= is the largest norm of a network's gradient",
    "accumulate_grad_batches": "gradients are not accumulated: data.batch_size= is the whole batch",
    "check_val_every_n_epoch": "evaluate_every= counts steps",
    "num_sanity_val_steps": "evaluate_every= is when samples are measured, and there is no check before",
    "min_steps": "trainer.max_steps= is how long a run takes",
    "min_epochs": "trainer.max_steps= is how long a run takes",
    "default_root_dir": "hydra.run.dir= is the run's folder",
    "logger": "logger= chooses tensorboard, csv, wandb, none, or several: logger=[tensorboard,csv]",
    "callbacks": "+callbacks.<name>= adds one",
    "enable_checkpointing": "~callbacks.checkpoints trains without",
    "use_distributed_sampler": "the data share themselves out",
    "reload_dataloaders_every_n_epochs": "the order of the data is a function of the step",
    "gpus": "trainer.devices= is how many there are",
    "barebones": "logger=none, ~callbacks.<name> and evaluate_every=null leave out what takes time",
}


def check_trainer(trainer: DictConfig) -> None:
    """Raise UserError where the trainer of a training has an option that is another one's here."""
    for option, instead in OTHER_WORDS.items():
        if option in trainer:
            raise UserError(f"trainer.{option}: {instead}")
    precision, strategy = str(trainer.precision), trainer.strategy
    if precision in ("16", "16-mixed"):
        raise UserError(f"trainer.precision={precision}: clipping and penalties need trainer.precision=bf16-mixed")
    if precision not in (*PRECISIONS, *SHORT):
        raise UserError(f"trainer.precision={precision}: must be one of {', '.join(PRECISIONS)}")
    if strategy not in STRATEGIES:
        raise UserError(f"trainer.strategy={strategy}: must be auto, which is DDP on several devices")
