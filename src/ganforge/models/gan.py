"""The adversarial game: the alternating step that every variant is built on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ganforge import randomness
from ganforge.data.base import Batch, TensorData
from ganforge.latents import Latent, to_device
from ganforge.losses import Loss
from ganforge.models.ema import moving_average, preserve_mode, with_average
from ganforge.models.sampler import Sampler
from ganforge.models.step_log import StepLog
from ganforge.models.updates import OptimizerOptions, frozen, has_update_hooks, parameters_of, profiled
from ganforge.randomness import CHUNK, Stream
from ganforge.regularizers import Regularizer, Scored, check_layers, score
from ganforge.runtime.lightning_private import count_step, step_uncounted

LossTerms = dict[str, Tensor]
"""The summands of a loss, under their names in the config and the log."""


class Game(NamedTuple):
    """A generator against a discriminator. `latent` is None if G gets none; `name` tells the games of a model apart."""

    generator: nn.Module
    discriminator: nn.Module
    latent: Latent | None
    name: str = ""

    def tag(self, value: str) -> str:
        """The name of a value of this game in the log."""
        return f"{self.name}/{value}" if self.name else value


class GAN(Sampler, LightningModule):
    """A generator and a discriminator in alternating updates (Goodfellow et al., 2014).

    One step is `discriminator_steps` updates of D, each on its own real samples and fakes, then `generator_steps`
    updates of G; `trainer.global_step` counts steps, not optimizer calls. The optimizers are partials that take the
    parameters, `schedule` is one that takes an optimizer. `gradient_clip` is the largest gradient norm of a network.
    Training starts with the weights of the run folder `init_from`.

    A variant overrides `generate`, `discriminator_loss`, `generator_loss` or `games`; `prepare_batch` if a game trains
    on something derived from the batch; `play` if a step consists of other updates.
    """

    from_images: ClassVar[bool] = False
    """Whether the generator translates images, and so needs data=pairs."""
    keeps_colours: ClassVar[bool] = False
    """Whether translated images keep the colours of the input, so that grey stays grey."""

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
        if min(discriminator_steps, generator_steps, moving_average_every) < 1:
            raise ValueError("discriminator_steps, generator_steps and moving_average_every must be at least 1")
        if moving_average_decay is not None and not 0 <= moving_average_decay < 1:
            raise ValueError(f"moving_average_decay={moving_average_decay}: must be in [0, 1), or null for no average")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip={gradient_clip}: must be a positive norm, or null for no clipping")
        check_layers(regularizers, discriminator)
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
        if compile:  # the networks in place: a compiled module would rename their weights
            generator.compile()
            discriminator.compile()
        self.step_log = StepLog()
        self.step_number = 0
        """The number of the current step, from 1."""
        self.rewinds = 0
        """How often training went back to an earlier checkpoint, to continue with other random numbers."""
        self._has_update_hooks = True

    # What a variant overrides ------------------------------------------------------------------------------------

    @property
    def games(self) -> list[Game]:
        return [Game(self.generator, self.discriminator, self.latent)]

    @property
    def needs_real(self) -> bool:
        """Whether G's loss compares fake with real samples: D then scores both in G's update."""
        return self.loss.needs_real

    def prepare_batch(self, game: Game, batch: Batch) -> Batch:
        return batch

    def generate(self, game: Game, latent: Any, condition: Any) -> Tensor:
        return game.generator(latent, condition)

    def discriminator_loss(self, game: Game, batch: Batch, real: Scored, fake: Scored) -> LossTerms:
        return {"adversarial": self.loss.discriminator(real.logits, fake.logits)}

    def generator_loss(self, game: Game, batch: Batch, fake: Scored, real: Scored | None = None) -> LossTerms:
        return {"adversarial": self.loss.generator(fake.logits, None if real is None else real.logits)}

    # The step ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.step_number = self.trainer.global_step + 1
        self.step_log.start(self.trainer, self.step_number)
        ranks = self.global_rank, self.trainer.world_size
        randomness.start_step(self.seed, self.step_number, *ranks, self.device, self.rewinds)
        hooked = self._has_update_hooks
        optimizers = map(step_uncounted, self.optimizers()) if hooked else iter(self.trainer.optimizers)
        for game in self.games:
            self.play(game, batch, next(optimizers), next(optimizers))
        if self.average is not None and self.step_number % self.average_every == 0:
            with profiled("moving average"):
                self.average.update_parameters(self.generator)
        if self.schedule:
            for schedule in self.lr_schedulers():  # type: ignore[union-attr]
                schedule.step()
        if self.step_log.is_due:
            self.step_log.write(images=batch.size * self.trainer.world_size)
        count_step(self.trainer)

    def play(self, game: Game, batch: Batch, optimizer_d: Optimizer, optimizer_g: Optimizer) -> None:
        """One step of one game: the updates of D, then those of G."""
        parts = [self.prepare_batch(game, part) for part in batch.split(self.discriminator_steps)]
        for part in parts:
            # the last fakes also serve G's first update: G does not change in between
            with torch.set_grad_enabled(part is parts[-1]):
                fake = self.generate(game, self.draw_latent(game, part.size), part.condition)
            self.update_discriminator(game, part, fake.detach(), optimizer_d)
        with frozen(optimizer_d):
            for repetition in range(self.generator_steps):
                if repetition > 0:
                    fake = self.generate(game, self.draw_latent(game, part.size), part.condition)
                self.update_generator(game, part, fake, optimizer_g)

    def update_discriminator(self, game: Game, batch: Batch, fake: Tensor, optimizer: Optimizer) -> None:
        due = {name: penalty for name, penalty in self.regularizers.items() if self.step_number % penalty.every == 0}
        differentiated = {penalty.differentiates for penalty in due.values()}
        with profiled("D: loss"):
            real_scored = score(game.discriminator, batch.real, batch.condition, "real" in differentiated)
            fake_scored = score(game.discriminator, fake, batch.condition, "fake" in differentiated)
            terms = self.discriminator_loss(game, batch, real_scored, fake_scored)
        with profiled("D: penalties"):
            for name, penalty in due.items():
                value = penalty(game.discriminator, real_scored, fake_scored)
                terms[name] = penalty.weight * penalty.every * value
        self.step_log.add_scores(game.tag, real_scored, fake_scored, self.loss.boundary)
        self.update(game, "d", game.discriminator, optimizer, terms)

    def update_generator(self, game: Game, batch: Batch, fake: Tensor, optimizer: Optimizer) -> None:
        with profiled("G: loss"):
            fake_scored = score(game.discriminator, fake, batch.condition)
            real_scored = score(game.discriminator, batch.real, batch.condition) if self.needs_real else None
            terms = self.generator_loss(game, batch, fake_scored, real_scored)
        self.step_log.add_loss_sensitivity(game.tag, self.loss, fake_scored, real_scored)
        self.update(game, "g", game.generator, optimizer, terms)

    def update(self, game: Game, player: str, network: nn.Module, optimizer: Optimizer, terms: LossTerms) -> None:
        """Minimize the sum of the terms by one optimizer call; `player` is "d" or "g"."""
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))
        parameters = parameters_of(optimizer)
        for parameter in parameters:
            parameter.grad = None  # all that zero_grad does, which takes a tenth of a millisecond to get there
        with profiled(f"{player.upper()}: backward"):
            trained = [parameter for parameter in parameters if parameter.requires_grad]  # and no samples
            if self._has_update_hooks:
                self.manual_backward(total, inputs=trained)
            else:
                self.trainer.strategy.pre_backward(total)
                total.backward(inputs=trained)
        self.step_log.add_update(game.tag, player, network, optimizer, {**terms, "total": total})
        if self.gradient_clip is not None:
            # not Lightning's clipping, which refuses fused optimizers under bf16-mixed without need
            nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        optimizer.step()

    def draw_latent(self, game: Game, count: int) -> Tensor | None:
        """This rank's rows of the latent of the whole batch."""
        return to_device(game.latent and randomness.for_batch(game.latent, count), self.device, self.dtype)

    # Lightning's side --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizers = []
        for game in self.games:
            optimizers.append(self.discriminator_optimizer(game.discriminator.parameters()))
            optimizers.append(self.generator_optimizer(game.generator.parameters()))
        return optimizers, [self.schedule(optimizer) for optimizer in optimizers] if self.schedule else []

    def on_fit_start(self) -> None:
        self._optimizer_options = OptimizerOptions(self.trainer.optimizers, is_scheduled=self.schedule is not None)

    def on_train_start(self) -> None:
        self._has_update_hooks = has_update_hooks(self, self.trainer)
        self._optimizer_options.restore(self.trainer.optimizers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rewinds"] = self.rewinds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rewinds = checkpoint["rewinds"]

    def on_validation_start(self) -> None:
        self.broadcast_buffers()

    def on_validation_end(self) -> None:
        self.step_log.restart_clock()

    def broadcast_buffers(self) -> None:
        """Copy the buffers of rank 0 to all ranks: under manual optimization DDP does not, and they drift apart."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def prepare(self) -> None:
        """Download what training needs besides data, such as weights. Raises UserError if that fails."""

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Load the weights of another run; the moving average starts as its average, or as its generator."""
        self.load_state_dict(with_average(state, self.state_dict()))

    # Sampling ----------------------------------------------------------------------------------------------------

    @property
    def sampling_generator(self) -> nn.Module:
        """The generator that samples are drawn from: the moving average if there is one."""
        return self.generator if self.average is None else self.average.module

    @property
    def sampling_game(self) -> Game:
        return Game(self.sampling_generator, self.discriminator, self.latent)

    @property
    def condition_size(self) -> int | None:
        """How many classes or attributes the generator is conditioned on; None if on none."""
        return getattr(self.generator, "condition_size", None)

    @torch.no_grad()
    def sample(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Generate samples without changing the training state."""
        generator = self.sampling_generator
        with preserve_mode(generator):
            generator.eval()
            condition = None if condition is None else condition.to(self.device)
            return self.generate(self.sampling_game, to_device(latent, self.device, self.dtype), condition)

    def preview(self, data: TensorData, count: int) -> tuple[Tensor, int | None]:
        """About `count` samples for a grid during training, and its number of columns, or None."""
        return self.sample_grid(count, conditions=None if self.condition_size is None else data.conditions())

    def sample_inputs(self, chunk: int, stream: Stream = Stream.SAMPLES) -> tuple[Any, Tensor | None]:
        """Latents of the evaluation samples chunk * CHUNK, ..., and conditions like those of the data."""
        assert self.latent is not None
        latent = randomness.sample_chunk(self.latent, self.seed, chunk, stream)
        latent = to_device(latent, self.device, self.dtype)
        if self.condition_size is None:
            return latent, None
        draw = self.trainer.datamodule.draw_conditions  # type: ignore[attr-defined]
        place = randomness.generator(self.seed, Stream.CONDITIONS, stream, chunk)
        return latent, draw(CHUNK, place).to(self.device)

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        latent, condition = self.sample_inputs(chunk)
        return Batch(self.sample(latent, condition), condition)
