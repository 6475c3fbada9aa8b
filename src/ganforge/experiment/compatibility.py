"""Check that the data, the model, its loss and the devices fit together, once they are built and before training.

Each check raises UserError.
"""

import logging
from typing import Any

from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from torch import nn

from ganforge.augment import Augmentation
from ganforge.data.base import TensorData
from ganforge.data.pairs import Pairs
from ganforge.losses import Loss
from ganforge.models.gan import GAN
from ganforge.regularizers import Mismatch
from ganforge.runtime.devices import device_count, on_cpu, rank
from ganforge.runtime.errors import UserError
from ganforge.schedules import Schedule

log = logging.getLogger(__name__)


def check_loss(loss: Any) -> None:
    """Check that a loss derives from Loss and implements both players' losses."""
    if not isinstance(loss, Loss):
        what = "none" if loss is None else f"a {type(loss).__name__}"
        raise UserError(
            f"model.loss is {what}: it needs a class that derives from ganforge.losses.Loss, such as loss=hinge"
        )
    for method in ("discriminator", "generator"):
        if getattr(type(loss), method) is getattr(Loss, method):
            raise UserError(f"loss: {type(loss).__name__} has no {method}(), which returns the {method}'s loss")


def check_pack(model: GAN) -> None:
    """Check that D can score packs of samples."""
    if model.pack > 1 and (model.condition_size is not None or model.latent is None or len(model.games) != 1):
        raise UserError(
            f"model.pack={model.pack}: only unconditional discriminators score packs of samples, such as that of "
            "model=dcgan. Use model.pack=1"
        )


def check_regularizers(model: GAN) -> None:
    """Check that D sees the labels that a regularizer is about."""
    for name, regularizer in model.regularizers.items():
        if isinstance(regularizer, Mismatch) and (model.condition_size is None or len(model.games) != 1):
            raise UserError(
                f"regularizer={name} is about labels: choose a model with one discriminator that sees them, such as "
                "model=compact_conditional"
            )


def check_augment(config: DictConfig, model: GAN) -> None:
    """Check that the augmentations work with the data, the model and its loss."""
    for name, augmentation in model.augmentations.items():
        if not isinstance(augmentation, Augmentation):
            raise UserError(
                f"augment.{name} is a {type(augmentation).__name__}: it needs a class that derives from "
                "ganforge.augment.Augmentation"
            )
        try:
            augmentation.check_shape(config.data.shape)
        except UserError as error:
            raise UserError(f"augment={name}: {error}") from error
        if augmentation.needs_images and not model.augments:
            raise UserError(
                f"augment={name} would misalign images with the images that they are conditioned on: use augment=none"
            )
        if augmentation.needs_boundary and model.loss.boundary is None:
            raise UserError(
                f"augment={name} follows the signs of D's logits, which have no meaning with this loss: use "
                "augment=fixed, or a loss= such as non_saturating"
            )


def check_optimizers(model: GAN) -> None:
    """Check that the optimizers take their arguments, and that the schedule of their rates is one of ganforge's."""
    try:
        model.configure_optimizers()
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"model.*_optimizer: {error}") from error
    if model.schedule is not None and not isinstance(model.schedule, Schedule):
        raise UserError(
            f"schedule is a {type(model.schedule).__name__}: it needs a class that derives from "
            "ganforge.schedules.Schedule, such as schedule=linear, not a scheduler of torch"
        )


def has_validations(config: DictConfig, data: TensorData, model: GAN) -> bool:
    """Whether training will be validated. Raises UserError if the data cannot measure the model."""
    trainer = config.trainer
    if not trainer.val_check_interval or not any(config.metrics.values()):
        return False
    if -1 < trainer.max_steps < trainer.val_check_interval:
        if rank() == 0:
            log.info("No evaluation: evaluate_every=%d exceeds trainer.max_steps.", trainer.val_check_interval)
        return False
    if isinstance(data, Pairs) and not data.sets["valid"]:
        return False
    check_pairs(data, model)
    return True


def check_pairs(data: TensorData, model: LightningModule) -> None:
    """Check that image-to-image models, and only they, are measured on pairs."""
    if isinstance(data, Pairs) and not _from_images(model):
        raise UserError("data.valid, data.test: pairs cannot measure this model, which is not an image-to-image model")
    check_counterparts(data, model)


def check_counterparts(data: TensorData, model: LightningModule) -> None:
    """Check that an image-to-image model is trained on pairs."""
    if not isinstance(data, Pairs) and _from_images(model):
        raise UserError("This is an image-to-image model: it needs data=pairs")


def _from_images(model: LightningModule) -> bool:
    return not isinstance(model, GAN) or model.from_images


def check_scale(data: TensorData, model: GAN) -> None:
    """Check that the generator enlarges images as much as the pairs do. The data have to be set up."""
    if isinstance(data, Pairs) and model.from_images and data.scale != model.generator.scale:
        instead = f"Set model.generator.scale={data.scale}" if data.scale > 1 else "Use model=pix2pix"
        raise UserError(
            f"model.generator.scale={model.generator.scale}: the images of these pairs are {data.scale} times as large "
            f"as their counterparts. {instead}, or another degradation="
        )


def check_devices(config: DictConfig, model: GAN) -> None:
    """Check that the devices can divide a batch evenly. Warns if BatchNorm differs between processes."""
    devices = device_count(config.trainer)
    rows = config.data.batch_size // devices
    if config.data.batch_size % devices:
        raise UserError(
            f"data.batch_size={config.data.batch_size} is not divisible by {devices} devices: use "
            f"{rows * devices or devices}"
        )
    if rows % model.pack:
        raise UserError(
            f"data.batch_size={config.data.batch_size}: the {rows} samples of each device are not divisible by "
            f"model.pack={model.pack}"
        )
    if devices > 1 and on_cpu(config.trainer) and rank() == 0 and _trains_batch_norm(model):
        log.warning(
            "BatchNorm is not synchronized across CPU processes: each of the %d normalizes its own %d samples, so the "
            "result differs from a single-process run.",
            devices,
            rows,
        )


def _trains_batch_norm(model: GAN) -> bool:
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for network in (model.generator, model.discriminator)
        if any(parameter.requires_grad for parameter in network.parameters())
        for module in network.modules()
    )
