"""`hydra/sweeper=optuna`: a search by Optuna, with a job for each trial."""

import logging
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import key_of
from ganforge.sweeps.resume import check_trials

if TYPE_CHECKING:  # slow to import, and for searches only
    import optuna
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Suggests the values of what is swept, `n_jobs` trials together, and reports results to Optuna.

    The study is in `storage`. A search that is resumed runs the trials that are missing of `n_trials`.
    """

    def __init__(self, n_trials: int, n_jobs: int, direction: str, sampler: Any, storage: str, study_name: str):
        self.n_trials, self.n_jobs, self.direction = n_trials, n_jobs, direction
        self.sampler, self.storage, self.study_name = sampler, storage, study_name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if self.direction not in ("minimize", "maximize"):
            raise CompactHydraException(f"hydra.sweeper.direction={self.direction}: must be minimize or maximize")
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        space = {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}
        if not space:
            raise CompactHydraException(
                "hydra/sweeper=optuna has nothing to search: give an option several values, such as "
                '"model.generator_optimizer.lr=interval(1e-5,1e-2)" or "loss=choice(hinge,minimax)"'
            )
        study = self._open_study()
        done = self._resume(study, {key_of(name) for name in space})
        remaining = self.n_trials - done
        if self.sampler == "grid":
            remaining = min(remaining, _enqueue_grid(study, space))
        while remaining > 0:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, remaining))]
            remaining -= len(trials)
            jobs = [[_value_of(each, trial.params) for each in overrides] for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                _tell(study, trial, result)
        _report_best(study)

    def _open_study(self) -> "optuna.Study":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options: dict[str, Any] = {"storage": self.storage, "study_name": self.study_name, "direction": self.direction}
        if self.sampler != "grid":
            options["sampler"] = self.sampler
        try:
            study = optuna.create_study(**options, load_if_exists=True)
        except Exception as error:  # SQLAlchemy's or Alembic's, of a damaged file or another version's
            reason = str(error).partition("\n")[0]
            raise CompactHydraException(
                f"{self.storage} is not a valid storage for Optuna {optuna.__version__}: {reason}"
            ) from error
        if study.direction.name.lower() != self.direction:
            raise CompactHydraException(
                "hydra.sweeper.direction= cannot change for an existing study: start a new search"
            )
        return study

    def _resume(self, study: "optuna.Study", keys: set[str]) -> int:
        """Returns how many trials are done. Killed trials are tried again with their values, in their folders."""
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        sources = self.config.hydra.runtime.config_sources
        conf = next(Path(source.path) for source in sources if source.provider == "main")
        try:
            check_trials(trials, keys, conf)
        except UserError as error:
            raise CompactHydraException(str(error)) from error
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                study.enqueue_trial(trial.params)
                study.tell(trial.number, state=TrialState.FAIL)
                again = study.get_trials(deepcopy=False)[-1].number
                for folder in Path(self.config.hydra.sweep.dir).glob(f"{trial.number}-*"):
                    folder.rename(folder.with_name(folder.name.replace(str(trial.number), str(again), 1)))
        done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        if trials:
            study.sampler.reseed_rng()  # else one with a seed would suggest the same values again
            log.info("The search resumes after %d of %d trials.", done, self.n_trials)
        return done


def _value_of(override: Override, params: dict[str, Any]) -> str:
    """The override of a trial's job."""
    if override.is_sweep_override():
        return f"{override.get_key_element()}={params[override.get_key_element()]}"
    return override.input_line or ""


def _distribution(override: Override) -> "BaseDistribution":
    """Which values of an override are searched."""
    from optuna import distributions

    def numeric(*bounds: Any, **options: Any) -> "BaseDistribution":
        is_whole = all(isinstance(bound, int) for bound in bounds)
        kind: Any = distributions.IntDistribution if is_whole else distributions.FloatDistribution
        try:
            return kind(*bounds, **options)
        except ValueError as error:  # such as a logarithm of 0, or bounds in the wrong order
            raise CompactHydraException(f"{override.input_line}: {error}") from error

    value = override.value()
    if getattr(value, "shuffle", False):
        raise CompactHydraException(f"{override.get_key_element()}: shuffle() has no effect in a search, leave it out")
    if isinstance(value, IntervalSweep):
        return numeric(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        return numeric(min(numbers), max(numbers), step=abs(value.step))
    return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))


def _enqueue_grid(study: "optuna.Study", space: dict[str, "BaseDistribution"]) -> int:
    """Enqueue all combinations that were not tried, and return how many wait."""
    from optuna.trial import TrialState

    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    known = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    for values in product(*(_grid_values(name, distribution) for name, distribution in space.items())):
        params = dict(zip(space, values, strict=True))
        if params not in known:
            study.enqueue_trial(params)
    return len(study.get_trials(deepcopy=False, states=[TrialState.WAITING]))


def _grid_values(name: str, distribution: Any) -> Sequence[Any]:
    if hasattr(distribution, "choices"):
        return distribution.choices
    if distribution.step is None:
        raise CompactHydraException(f"{name}: hydra/sweeper/sampler=grid needs choice(...) or range(...)")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def _tell(study: "optuna.Study", trial: "optuna.Trial", result: JobReturn) -> None:
    """Pruned trials are told by their job (see `ganforge.callbacks.Pruning`)."""
    from optuna.trial import TrialState

    value = result.return_value if result.status is JobStatus.COMPLETED else None
    if value is None or not math.isfinite(value):
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    else:
        study.tell(trial, value, skip_if_finished=True)


def _report_best(study: "optuna.Study") -> None:
    try:
        best = study.best_trial
    except ValueError as error:
        raise CompactHydraException("No trial produced a value") from error
    params = ", ".join(f"{name}={value}" for name, value in best.params.items())
    log.info("Best trial: %d with %s, value %s", best.number, params, best.value)
