"""The adversarial training step that every variant builds on."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ganforge import randomness
from ganforge.augment import Augmentation
from ganforge.data.base import Batch
from ganforge.latents import Latent, to_device
from ganforge.losses import Loss
from ganforge.models.ema import MovingAverage, with_augment, with_average
from ganforge.models.sampler import ModelSampler
from ganforge.models.scheduled import MakeOptimizer, OptimizerOptions, Scheduled
from ganforge.models.step_log import StepLog
from ganforge.models.updates import frozen, has_update_hooks, parameters_of, profiled
from ganforge.regularizers import Critic, Regularizer, Scored, check_layers
from ganforge.runtime.lightning_private import count_step, step_uncounted
from ganforge.schedules import Schedule

LossTerms = dict[str, Tensor]
"""The summands of a loss, under their names in the config and the log."""


class Game(NamedTuple):
    """One generator-discriminator pair. `latent` is None if G gets none; `name` tells the games of a model apart."""

    generator: nn.Module
    discriminator: nn.Module
    latent: Latent | None
    name: str = ""

    def tag(self, value: str) -> str:
        """The name of a value of this game in the log."""
        return f"{self.name}/{value}" if self.name else value


class GAN(ModelSampler, LightningModule):
    """A generator and a discriminator in alternating updates (Goodfellow et al., 2014).

    One step is `discriminator_steps` updates of D, each on its own real samples and fakes, then `generator_steps`
    updates of G; `trainer.global_step` counts steps, not optimizer calls. The optimizers are partials that take the
    parameters; `schedule` scales their learning rates. `gradient_clip` is the maximum gradient norm per network. D
    scores `pack` samples at once (PacGAN, Lin et al., 2018). `moving_average_half_life`, in images, replaces the decay
    per step. Training starts with the weights of the run folder `init_from`.

    A variant overrides `generate`, `discriminator_loss`, `generator_loss` or `games`; `prepare_batch` if a game trains
    on something derived from the batch; `play` if a step consists of other updates.
    """

    from_images: ClassVar[bool] = False
    """Whether the generator translates images, and so needs data=pairs."""
    augments: ClassVar[bool] = True
    """Whether what D sees may be augmented: not if D compares it with an image, the condition."""
    keeps_colours: ClassVar[bool] = False
    """Whether translated images keep the colours of the input, so that grey stays grey."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        latent: Latent | None,
        loss: Loss,
        regularizers: Mapping[str, Regularizer],
        generator_optimizer: MakeOptimizer,
        discriminator_optimizer: MakeOptimizer,
        augment: Mapping[str, Augmentation] | None = None,
        schedule: Schedule | None = None,
        discriminator_steps: int = 1,
        generator_steps: int = 1,
        pack: int = 1,
        gradient_clip: float | None = None,
        moving_average_decay: float | None = 0.999,
        moving_average_half_life: float | Schedule | None = None,
        moving_average_rampup: float | None = 0.05,
        moving_average_every: int = 10,
        compile: bool = False,
        init_from: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        if min(discriminator_steps, generator_steps, pack) < 1:
            raise ValueError(f"{discriminator_steps=}, {generator_steps=}, {pack=}: must be at least 1")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip={gradient_clip}: must be a positive norm, or null for no clipping")
        check_layers(regularizers, discriminator)
        self.generator = generator
        self.discriminator = discriminator
        self.latent = latent
        self.loss = loss
        self.regularizers = dict(regularizers)
        self.augment = nn.ModuleDict(augment)  # part of the checkpoint
        self.augmentations = dict(augment or {})
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.schedule = schedule or None  # an empty config group is a dict
        self.discriminator_steps = discriminator_steps
        self.generator_steps = generator_steps
        self.pack = pack
        self.gradient_clip = gradient_clip
        self.init_from = init_from
        self.seed = seed
        self.average: MovingAverage | None = None
        if moving_average_decay is not None or moving_average_half_life is not None:
            ramp = moving_average_rampup, moving_average_every
            self.average = MovingAverage(generator, moving_average_decay, moving_average_half_life, *ramp)
        if compile:  # the networks in place: a compiled module would rename their weights
            generator.compile()
            discriminator.compile()
        self.step_log = StepLog()
        self.step_number = 0
        """The number of the current step, from 1."""
        self.rewinds = 0
        """How often training was rewound to an earlier checkpoint, to continue with other random numbers."""
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
        self.step_log.add_numbers(self._scheduled.set(self.step_number, self.trainer.max_steps))
        for game in self.games:
            self.play(game, batch, next(optimizers), next(optimizers))
        images = batch.size * self.trainer.world_size
        if self.average is not None:
            self.average.step(self.generator, self.step_number, images // self.discriminator_steps)
        if self.step_log.is_due:
            self.step_log.write(images)
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
        critic = self.critic(game)
        with profiled("D: loss"):
            real_scored = critic(batch.real, batch.condition, "real" in differentiated)
            fake_scored = critic(fake, batch.condition, "fake" in differentiated)
            terms = self.discriminator_loss(game, batch, real_scored, fake_scored)
        with profiled("D: penalties"):
            for name, penalty in due.items():
                value = penalty(critic, real_scored, fake_scored)
                if value is not None:
                    terms[name] = penalty.weight * penalty.every * value
        self.step_log.add_scores(game.tag, real_scored, fake_scored, self.loss.boundary)
        self.step_log.add_augmentations(self.augmentations)
        self.update(game, "d", game.discriminator, optimizer, terms)
        for penalty in due.values():
            penalty.constrain(game.discriminator)
        for augmentation in self.augmentations.values():
            augmentation.observe(real_scored.logits.detach(), self.loss.boundary, self.pack)

    def update_generator(self, game: Game, batch: Batch, fake: Tensor, optimizer: Optimizer) -> None:
        with profiled("G: loss"):
            critic = self.critic(game)
            fake_scored = critic(fake, batch.condition)
            real_scored = critic(batch.real, batch.condition) if self.needs_real else None
            terms = self.generator_loss(game, batch, fake_scored, real_scored)
        self.step_log.add_loss_sensitivity(game.tag, self.loss, fake_scored, real_scored)
        self.update(game, "g", game.generator, optimizer, terms)

    def update(self, game: Game, player: str, network: nn.Module, optimizer: Optimizer, terms: LossTerms) -> None:
        """Minimize the sum of the terms by one optimizer call; `player` is "d" or "g"."""
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))
        parameters = parameters_of(optimizer)
        for parameter in parameters:
            parameter.grad = None  # zero_grad(set_to_none=True) without its 0.1 ms overhead
        with profiled(f"{player.upper()}: backward"):
            trained = [parameter for parameter in parameters if parameter.requires_grad]  # and no samples
            if self._has_update_hooks:
                self.manual_backward(total, inputs=trained)
            else:
                self.trainer.strategy.pre_backward(total)
                total.backward(inputs=trained)
        self.step_log.add_update(game.tag, player, network, {**terms, "total": total})
        if self.gradient_clip is not None:
            # not Lightning's clipping, which needlessly refuses fused optimizers under bf16-mixed
            nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        optimizer.step()

    def critic(self, game: Game) -> Critic:
        """The one place where D sees samples."""
        return Critic(game.discriminator, self.augmentations.values(), self.pack)

    def draw_latent(self, game: Game, count: int) -> Tensor | None:
        """This rank's rows of the latent of the whole batch."""
        return to_device(game.latent and randomness.for_batch(game.latent, count), self.device, self.dtype)

    # Lightning's side --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        makers = {"discriminator": self.discriminator_optimizer, "generator": self.generator_optimizer}
        self._scheduled.optimizers = [
            OptimizerOptions(f"model.{player}_optimizer", make, getattr(game, player).parameters(), self.schedule)
            for game in self.games
            for player, make in makers.items()
        ]
        return [options.optimizer for options in self._scheduled.optimizers]

    @cached_property
    def _scheduled(self) -> Scheduled:
        """The scheduled numbers. Collected once, because each step replaces the schedules by numbers."""
        regularizers = {f"regularizer.{name}.": part for name, part in self.regularizers.items()}
        augment = {f"augment.{name}.": part for name, part in self.augmentations.items()}
        own = {"model.": self, "model.moving_average_": self.average, "loss.": self.loss}
        return Scheduled({**own, **regularizers, **augment})

    def on_fit_start(self) -> None:
        self._scheduled.set(1, self.trainer.max_steps)  # reports mistakes early

    def on_train_start(self) -> None:
        self._has_update_hooks = has_update_hooks(self, self.trainer)
        self._scheduled.restore()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rewinds"] = self.rewinds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rewinds = checkpoint["rewinds"]
        checkpoint["state_dict"] = with_augment(checkpoint["state_dict"], self.state_dict())

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
        own = self.state_dict()
        self.load_state_dict(with_augment(with_average(state, own), own))

    @property
    def sampling_game(self) -> Game:
        return Game(self.sampling_generator, self.discriminator, self.latent)

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        latent, condition = self.sample_inputs(chunk)
        return Batch(self.sample(latent, condition), condition)
