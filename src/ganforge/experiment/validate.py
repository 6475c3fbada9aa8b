"""Mistakes in a config that would fail late, or with somebody else's words, found before training."""

import logging
from collections import ChainMap
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from hydra.utils import get_class
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ganforge.data.base import TensorData
from ganforge.data.pairs import Pairs
from ganforge.experiment.trainer_options import check_trainer
from ganforge.losses import Loss
from ganforge.models.gan import GAN
from ganforge.runs.record import read_record
from ganforge.runtime.devices import device_count, on_cpu, rank
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)


WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def check_types(node: Any, key: str = "") -> None:
    """Raise UserError where a value of a config is of another type than the argument that it is for."""
    if not isinstance(node, dict):
        return
    hints = _hints(str(node["_target_"])) if "_target_" in node else {}
    for name, value in node.items():
        path = f"{key}.{name}".lstrip(".")
        kinds = hints.get(name, ())
        if kinds and not any(_is_of(value, kind) for kind in kinds):
            raise UserError(f"{path}={value}: must be {' or '.join(WORDS[kind] for kind in kinds)}")
        check_types(value, path)


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _hints(target: str) -> dict[str, tuple[Any, ...]]:
    """The types that the arguments of a class may have, where they are of WORDS only; those of its bases included."""
    try:
        found = get_class(target)
        hints = [_annotations(vars(cls)["__init__"]) for cls in reversed(found.__mro__) if "__init__" in vars(cls)]
    except Exception:  # what cannot be imported, or has odd hints, is reported by whoever makes it
        return {}
    kinds = {
        name: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for name, hint in ChainMap(*reversed(hints)).items()
    }
    known = {name: set(types) <= {*WORDS, Tensor} for name, types in kinds.items()}
    return {name: tuple(kind for kind in types if kind in WORDS) for name, types in kinds.items() if known[name]}


def _annotations(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # torch imports some types for type checkers only
        simple = {kind.__name__: kind for kind in WORDS}
        return {name: simple.get(str(annotation), object) for name, annotation in function.__annotations__.items()}


def check_values(config: DictConfig) -> None:
    """Values that would fail late, or with somebody else's words."""
    trainer = config.trainer
    if trainer.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.mps.is_available()):
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}: torch finds no GPU here. trainer=cpu trains without, "
            "trainer=default on what there is"
        )
    if trainer.devices in (0, "0"):
        raise UserError("trainer.devices=0: must be at least 1")
    check_count("trainer.num_nodes", trainer.num_nodes)
    check_trainer(trainer)
    check_count("trainer.log_every_n_steps", trainer.log_every_n_steps)
    check_count("evaluate_every", config.trainer.val_check_interval or 1)
    check_count("data.num_samples", config.data.get("num_samples", 1), MOST_SAMPLES)
    if "generator_optimizer" in config.model:
        check_networks(config.model)
    if config.schedule and (trainer.max_steps < 0 or trainer.max_epochs not in (None, -1)):
        raise UserError("A schedule runs over trainer.max_steps: set that, and leave trainer.max_epochs=-1")


def check_count(option: str, value: Any, most: int | None = None) -> None:
    if not _is_of(value, int) or value < 1 or (most is not None and value > most):
        raise UserError(f"{option}={value}: must be a whole number from 1{f' to {most:,}' if most else ''}")


MOST_SAMPLES = 10_000_000
"""That are generated to be measured, a thousand times what is usual."""


def check_seed(seed: Any, option: str = "seed") -> None:
    if not _is_of(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"{option}={seed}: must be a whole number from 0 to {2**32 - 1}")


def check_seeds(config: DictConfig) -> None:
    """Of a run, and of the data and the model where they have others."""
    for option in ("seed", "data.seed", "model.seed"):
        check_seed(OmegaConf.select(config, option, default=0), option)


def check_flag(option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{option}={value}: must be true or false")


def check_parts(config: DictConfig) -> None:
    """Raise UserError where a part of the config is left out that a run cannot do without."""
    trains = "loss" in config.get("model", {})  # bicubic has neither loss nor regularizer
    for part in ("data", "model", "trainer", *(("loss", "regularizer") if trains else ())):
        # what others state of a part is no part
        if not isinstance(config.get(part), DictConfig) or (part != "regularizer" and "_target_" not in config[part]):
            raise UserError(f"{part} is missing: choose one by {part}=...")
    leaves_out = {"callbacks": "~callbacks.samples leaves out a single one", "logger": "logger=none trains without"}
    for part, instead in leaves_out.items():
        if not isinstance(config.get(part), DictConfig):
            raise UserError(f"{part} is missing: {instead}")
    for part in ("schedule", "metrics", "extractor"):
        if part not in config:
            raise UserError(f"{part} is missing: {part}={'auto' if part == 'extractor' else 'none'} leaves it out")
    for name, callback in config.callbacks.items():
        if not isinstance(callback, DictConfig) or "_target_" not in callback:
            raise UserError(f"callbacks.{name} is no callback: it needs a _target_, or ~callbacks.{name} leaves it out")
    for name, logger in config.logger.items():
        if not isinstance(logger, DictConfig) or "_target_" not in logger:
            raise UserError(f"logger.{name} is no logger: it needs a _target_, or ~logger.{name} leaves it out")


def check_networks(config: DictConfig) -> None:
    """Raise UserError where a network gets what it does not take, such as the arguments of a model it derives from."""
    for option in ("generator", "discriminator"):
        network = config.get(option)
        if not isinstance(network, DictConfig) or "_target_" not in network:
            raise UserError(f"model.{option} is missing: it needs a _target_, the network's class")
        try:
            takes = signature(get_class(str(network["_target_"]))).parameters
        except Exception:  # what cannot be imported is reported by whoever makes it
            continue
        if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values()):
            continue
        unknown = [str(key) for key in network if not str(key).startswith("_") and key not in takes]
        if unknown:
            raise UserError(
                f"model.{option}.{unknown[0]}: {network['_target_']} takes no {', no '.join(unknown)}. A model's yaml "
                "that has networks of its own starts from `defaults: [base/gan@_here_, _self_]`, which brings none"
            )


def check_loss(loss: Any) -> None:
    """Raise UserError where a loss lacks what training asks of it."""
    if not isinstance(loss, Loss):
        what = "none" if loss is None else f"a {type(loss).__name__}"
        raise UserError(f"model.loss is {what}: it needs a class that derives from ganforge.losses.Loss, as loss=hinge")
    for method in ("discriminator", "generator"):
        if getattr(type(loss), method) is getattr(Loss, method):
            raise UserError(f"loss: {type(loss).__name__} has no {method}(), which returns what the {method} minimises")


def validates(config: DictConfig, data: TensorData, model: GAN) -> bool:
    """Whether there will be validations. Raises UserError where they are asked for and cannot be had."""
    trainer = config.trainer
    if not trainer.val_check_interval or not any(config.metrics.values()):
        return False
    if -1 < trainer.max_steps < trainer.val_check_interval:
        if rank() == 0:
            log.info("Nothing is measured: evaluate_every=%d is more than the steps.", trainer.val_check_interval)
        return False
    if isinstance(data, Pairs) and not data.sets["valid"]:
        return False
    check_pairs(data, model)
    return True


def check_pairs(data: TensorData, model: LightningModule) -> None:
    """Raise UserError where a model that draws samples is to be measured on pairs, or one of pairs on other data."""
    if isinstance(data, Pairs) and not _from_images(model):
        raise UserError("data.valid, data.test: this model does not make images of images, so pairs cannot measure it")
    check_partners(data, model)


def check_partners(data: TensorData, model: LightningModule) -> None:
    """Raise UserError where a model that makes images of images has none."""
    if not isinstance(data, Pairs) and _from_images(model):
        raise UserError("This model makes images of images: it needs data=pairs")


def _from_images(model: LightningModule) -> bool:
    return not isinstance(model, GAN) or model.from_images


def check_scale(data: TensorData, model: GAN) -> None:
    """Raise UserError where a generator makes images of another size than the pairs have."""
    if isinstance(data, Pairs) and model.from_images and data.scale != model.generator.scale:
        raise UserError(
            f"model.generator.scale={model.generator.scale}: the images of these pairs are {data.scale} times as large "
            f"as their partners: {'set it to that' if data.scale > 1 else 'use model=pix2pix'}, or another degradation="
        )


def check_optimizers(model: GAN) -> None:
    try:
        model.configure_optimizers()
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"model.*_optimizer or schedule: {error}") from error


def check_schedule(config: DictConfig, folder: Path) -> None:
    """Raise UserError where a run that goes on is to change what its schedule was laid out for."""
    before: Any = read_record(folder)
    schedules: list[Any] = [OmegaConf.to_container(record.schedule, resolve=True) for record in (before, config)]
    was, now = schedules
    steps = before.trainer.max_steps, config.trainer.max_steps
    for key in {**was, **now}:
        values = was.get(key), now.get(key)
        if values[0] != values[1] and values == steps:
            raise UserError(
                f"trainer.max_steps={steps[1]}: this run's schedule was laid out for {steps[0]} steps and cannot be "
                "stretched. Start a new run, or resume without trainer.max_steps"
            )
        if values[0] != values[1]:
            raise UserError(
                f"schedule.{key}={values[1]}: this run's schedule goes on from {values[0]}. Start a new run, or resume "
                "without it"
            )
    for option in ("generator_optimizer", "discriminator_optimizer"):
        rates = [record.model[option].get("lr") for record in (before, config)]
        if config.schedule and rates[0] != rates[1]:
            raise UserError(
                f"model.{option}.lr={rates[1]}: this run's schedule goes on from {rates[0]}. Start a new run, or "
                "resume without it"
            )


def check_devices(config: DictConfig, model: GAN) -> None:
    devices = device_count(config.trainer)
    if config.data.batch_size % devices:
        raise UserError(
            f"data.batch_size={config.data.batch_size} does not divide by {devices} devices, which share it out: "
            f"use {config.data.batch_size // devices * devices or devices}"
        )
    batch_norm = any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for network in (model.generator, model.discriminator)
        if any(parameter.requires_grad for parameter in network.parameters())
        for module in network.modules()
    )
    if devices > 1 and on_cpu(config.trainer) and batch_norm and rank() == 0:
        log.warning(
            "BatchNorm on %d CPU processes: each normalises its own %d rows, as torch cannot synchronise it on CPUs. "
            "The run differs from one on a single process.",
            devices,
            config.data.batch_size // devices,
        )
