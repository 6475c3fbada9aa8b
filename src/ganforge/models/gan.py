"""The adversarial game: the alternating step that every variant is built on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, update_bn

from ganforge import randomness
from ganforge.data.base import Batch, TensorData
from ganforge.latents import Latent
from ganforge.losses import Loss
from ganforge.models.ema import ForwardAdapter, moving_average, preserve_mode
from ganforge.models.game import Game, LossTerms
from ganforge.models.sampler import Sampler
from ganforge.models.step_log import StepLog
from ganforge.randomness import CHUNK, Stream
from ganforge.regularizers import Regularizer


class GAN(Sampler, StepLog):
    """A generator and a discriminator in alternating steps (Goodfellow et al., 2014).

    One step is `discriminator_steps` updates of D, each on real rows and fakes of its own, then `generator_steps`
    updates of G; `trainer.global_step` counts steps, not optimizer calls. Optimizers and `schedule` are partials that
    lack the parameters, or the optimizer. `gradient_clip` is a maximal norm per network.

    `init_from` is a run folder whose weights training starts with.

    A variant overrides `generate`, `discriminator_loss`, `generator_loss` or `games`, `prepare_batch` where a game sees
    something else of a batch, and `play` where a step is another one.
    """

    from_images: ClassVar[bool] = False
    """Whether samples are made of the images of pairs."""
    keeps_colours: ClassVar[bool] = False
    """Whether they have the colours of those, so that grey stays grey."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        latent: Latent | None,
        loss: Loss,
        regularizers: Mapping[str, Regularizer],
        generator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        discriminator_steps: int = 1,
        generator_steps: int = 1,
        gradient_clip: float | None = None,
        moving_average_decay: float | None = 0.999,
        moving_average_every: int = 10,
        compile: bool = False,
        init_from: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        if min(discriminator_steps, generator_steps) < 1:
            raise ValueError("discriminator_steps and generator_steps must be at least 1")
        if moving_average_decay is not None and not 0 <= moving_average_decay < 1:
            raise ValueError(f"moving_average_decay={moving_average_decay}: must be in [0, 1), or null for no average")
        if moving_average_every < 1:
            raise ValueError(f"moving_average_every={moving_average_every}: must be at least 1")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip={gradient_clip}: must be a positive norm, or null for no clipping")
        for name, regularizer in regularizers.items():
            for module in discriminator.modules():
                if isinstance(module, regularizer.refuses):
                    raise ValueError(
                        f"regularizer={name} does not work with a discriminator that has {type(module).__name__}: "
                        "set model.discriminator.normalization=null"
                    )
        self.generator = generator
        self.discriminator = discriminator
        self.latent = latent
        self.loss = loss
        self.regularizers = dict(regularizers)
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.schedule = schedule or None  # an empty config group is a dict
        self.discriminator_steps = discriminator_steps
        self.generator_steps = generator_steps
        self.gradient_clip = gradient_clip
        self.init_from = init_from
        self.seed = seed
        self.average: AveragedModel | None = None
        self.average_every = moving_average_every
        if moving_average_decay is not None:
            self.average = moving_average(generator, moving_average_decay**moving_average_every)
        if compile:  # the networks, not the module; in place, which leaves the names of their weights alone
            generator.compile()
            discriminator.compile()

        self.rewinds = 0
        """How often training went back to an earlier checkpoint, and on with other random numbers."""
        self._has_update_hooks = True

    # What a variant overrides ------------------------------------------------------------------------------------

    @property
    def games(self) -> list[Game]:
        return [Game(self.generator, self.discriminator, self.latent)]

    def prepare_batch(self, game: Game, batch: Batch) -> Batch:
        return batch

    def generate(self, game: Game, latent: Any, condition: Any) -> Tensor:
        return game.generator(latent, condition)

    def discriminator_loss(self, game: Game, batch: Batch, fake: Tensor) -> LossTerms:
        real_logits = game.discriminator(batch.real, batch.condition)
        fake_logits = game.discriminator(fake, batch.condition)
        if self.is_logging:
            self.log_game(game, batch.real, fake, real_logits, fake_logits)
        terms = {"adversarial": self.loss.discriminator(real_logits, fake_logits)}
        for name, regularizer in self.regularizers.items():
            if self.step_number % regularizer.every == 0:
                penalty = regularizer(game.discriminator, batch.real, fake, batch.condition)
                terms[name] = regularizer.weight * regularizer.every * penalty
        return terms

    def generator_loss(self, game: Game, batch: Batch, fake: Tensor) -> LossTerms:
        fake_logits = game.discriminator(fake, batch.condition)
        real_logits = game.discriminator(batch.real, batch.condition) if self.loss.needs_real else None
        if self.is_logging:
            self.log_loss_sensitivity(game, fake_logits, real_logits)
        return {"adversarial": self.loss.generator(fake_logits, real_logits)}

    # The step ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.start_step()
        ranks = self.global_rank, self.trainer.world_size
        randomness.start_step(self.seed, self.step_number, *ranks, self.device, self.rewinds)
        optimizers = self._optimizers()
        for game in self.games:
            self.play(game, batch, next(optimizers), next(optimizers))
        if self.average is not None and self.step_number % self.average_every == 0:
            self.average.update_parameters(self.generator)
        if self.schedule:
            for schedule in self.lr_schedulers():  # type: ignore[union-attr]
                schedule.step()
        if self.is_logging:
            self.write(batch.size * self.trainer.world_size)
        self._count_step()

    def play(self, game: Game, batch: Batch, optimizer_d: Optimizer, optimizer_g: Optimizer) -> None:
        """One step of one game."""
        parts = [self.prepare_batch(game, part) for part in batch.split(self.discriminator_steps)]
        for part in parts:
            # the last fake serves G's first update as well: G does not change in between
            with torch.set_grad_enabled(part is parts[-1]):
                fake = self.generate(game, self.draw_latent(game, part.size), part.condition)
            terms = self.discriminator_loss(game, part, fake.detach())
            self._update(game, "d", game.discriminator, optimizer_d, terms)
        for repetition in range(self.generator_steps):
            if repetition > 0:
                fake = self.generate(game, self.draw_latent(game, part.size), part.condition)
            with _frozen(optimizer_d):
                terms = self.generator_loss(game, part, fake)
                self._update(game, "g", game.generator, optimizer_g, terms)

    def draw_latent(self, game: Game, count: int) -> Tensor | None:
        """This rank's rows of the latent of the whole batch."""
        return None if game.latent is None else self._place(randomness.for_batch(game.latent, count))

    def _place(self, latent: Any) -> Any:
        if isinstance(latent, tuple):
            return tuple(map(self._place, latent))
        return latent.to(device=self.device, dtype=self.dtype)

    def _update(self, game: Game, player: str, network: nn.Module, optimizer: Optimizer, terms: LossTerms) -> None:
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))
        for parameter in _parameters(optimizer):
            parameter.grad = None  # all that zero_grad does, which takes a tenth of a millisecond to get there
        if self._has_update_hooks:
            self.manual_backward(total)
        else:
            self.trainer.strategy.pre_backward(total)
            total.backward()
        self.log_update(game, player, network, optimizer, {**terms, "total": total})
        if self.gradient_clip is not None:
            # not Lightning's, which refuses fused optimizers at bf16-mixed though it has nothing to unscale there
            nn.utils.clip_grad_norm_(_parameters(optimizer), self.gradient_clip)
        optimizer.step()

    # Lightning's side --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizers = [
            partial(network.parameters())
            for game in self.games
            for partial, network in (
                (self.discriminator_optimizer, game.discriminator),
                (self.generator_optimizer, game.generator),
            )
        ]
        return optimizers, [self.schedule(optimizer) for optimizer in optimizers] if self.schedule else []

    def _optimizers(self) -> Iterator[Any]:
        if not self._has_update_hooks:
            yield from self.trainer.optimizers
            return
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            # Lightning would count every optimizer call as a step of the run (its issue 17958)
            optimizer._on_before_step = optimizer._on_after_step = _nothing
            yield optimizer

    def _count_step(self) -> None:
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def on_fit_start(self) -> None:
        # a checkpoint will restore the options of its optimizers; those of the config hold, as one may set them anew
        self._options = []
        for group in self._parameter_groups():
            scheduled = ["lr", "initial_lr"] if self.schedule else []
            if "max_momentum" in group:  # CyclicLR and OneCycleLR move more than the rate
                scheduled += ["betas", "momentum"]
            self._options.append({key: group[key] for key in group if key not in ("params", *scheduled)})

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.trainer.optimizers for group in optimizer.param_groups)

    def on_train_start(self) -> None:
        # calling hooks that nobody has costs a few per cent of a small step
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        self._has_update_hooks = any(
            is_overridden(hook, self, parent=LightningModule)
            or any(is_overridden(hook, callback, parent=Callback) for callback in callbacks)
            for hook in _HOOKS
        )
        for group, options in zip(self._parameter_groups(), self._options, strict=True):
            group.update(options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rewinds"] = self.rewinds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rewinds = checkpoint["rewinds"]

    def on_validation_start(self) -> None:
        self.broadcast_buffers()

    def broadcast_buffers(self) -> None:
        """Give all ranks the buffers of rank 0: under manual optimization DDP does not, and BatchNorm's drift apart."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def prepare(self) -> None:
        """Get what training needs besides data, such as weights. Raises UserError where it cannot be had."""

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take the weights of another run. The moving average begins at that run's, or else at its generator."""
        averages = {name: value for name, value in self.state_dict().items() if name.startswith("average.")}
        both = averages and any(name.startswith("average.") for name in state)
        kept = {name: value for name, value in state.items() if both or not name.startswith("average.")}
        self.load_state_dict(kept if both else averages | kept)
        if self.average is not None and not both:
            self.average.module.load_state_dict(self.generator.state_dict())

    # Sampling ----------------------------------------------------------------------------------------------------

    @property
    def sampling_generator(self) -> nn.Module:
        """The generator that samples are drawn from: the moving average if there is one."""
        return self.generator if self.average is None else self.average.module

    @property
    def condition_size(self) -> int | None:
        """How many classes or attributes the generator is conditioned on; None if on none."""
        return getattr(self.generator, "condition_size", None)

    @torch.no_grad()
    def sample(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Samples, without a trace in the training state."""
        generator = self.sampling_generator
        with preserve_mode(generator):
            generator.eval()
            latent = None if latent is None else self._place(latent)
            condition = None if condition is None else condition.to(self.device)
            return self.generate(Game(generator, self.discriminator, self.latent), latent, condition)

    def preview(self, data: TensorData, count: int) -> tuple[Tensor, int | None]:
        """About `count` samples that show how training goes, and how many make a row of a grid if that matters."""
        return self.sample_grid(count, conditions=None if self.condition_size is None else data.conditions())

    def sample_inputs(self, chunk: int, stream: Stream = Stream.SAMPLES) -> tuple[Any, Tensor | None]:
        """Latents of the evaluation samples chunk * CHUNK, ..., and conditions like those of the data."""
        assert self.latent is not None
        latent = self._place(randomness.sample_chunk(self.latent, self.seed, chunk, stream))
        if self.condition_size is None:
            return latent, None
        draw = self.trainer.datamodule.draw_conditions  # type: ignore[attr-defined]
        place = randomness.generator(self.seed, Stream.CONDITIONS, stream, chunk)
        return latent, draw(CHUNK, place).to(self.device)

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        latent, condition = self.sample_inputs(chunk)
        return Batch(self.sample(latent, condition), condition)

    @contextmanager
    def standing_statistics(self, chunks: int = 16) -> Iterator[None]:
        """Inside, samples are drawn with BatchNorm statistics of the sampler's present weights, estimated on chunks of
        samples (Brock et al., 2019); afterwards the former ones are back."""
        generator = self.sampling_generator
        before = {name: buffer.clone() for name, buffer in generator.named_buffers()}
        game = Game(generator, self.discriminator, self.latent)
        fed = ForwardAdapter(generator, lambda i: self.generate(game, *self.sample_inputs(i, stream=Stream.STANDING)))
        with preserve_mode(generator):
            update_bn(range(chunks), fed)
        try:
            yield
        finally:
            for name, buffer in generator.named_buffers():
                buffer.copy_(before[name])


_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Lightning's hooks around the updates."""


def _nothing() -> None: ...


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


@contextmanager
def _frozen(optimizer: Optimizer) -> Iterator[None]:
    """Keep the parameters of an optimizer out of the graph."""
    parameters = [parameter for parameter in _parameters(optimizer) if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
