"""Hydra's search by Optuna, made to go on where it stopped; here, since Hydra takes plugins from no other package."""

import logging
import warnings
from contextlib import suppress
from pathlib import Path

from hydra.errors import CompactHydraException

from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import key_of

log = logging.getLogger(__name__)

with suppress(ImportError):  # then there is no search
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

    class Search(OptunaSweeper):
        """`hydra/sweeper=optuna`, as ganforge completes it (see `ganforge.sweeps.sweep.SEARCH`).

        A search that goes on leaves the trials that its storage knows alone and numbers its jobs after them; Hydra's
        would run all `n_trials` again. The trials that were killed are tried again with their values, in their folders.
        """

        def sweep(self, arguments: list[str]) -> None:
            from ganforge.sweeps.sweep import swept_keys

            search = self.sweeper
            keys = swept_keys(arguments) | set(search.search_space or {}) | set(search.params or {})
            if not keys and not search.custom_search_space_extender:
                raise CompactHydraException(
                    "hydra/sweeper=optuna has nothing to search: give an option several values, such as "
                    '"model.generator_optimizer.lr=interval(1e-5,1e-2)" or "loss=choice(hinge,minimax)"'
                )
            if search.storage is not None and any(key_of(argument) == "sweep" for argument in arguments):
                self._settle(keys)
            try:
                super().sweep(arguments)
            except ValueError as error:
                if str(error) not in ("Record does not exist.", "No trials are completed yet."):  # Optuna's
                    raise
                raise CompactHydraException("No trial of this search came to a value") from error

        def _settle(self, keys: set[str]) -> None:
            import optuna

            from ganforge.sweeps.resume import check_trials

            state, search = optuna.trial.TrialState, self.sweeper
            if getattr(search.sampler, "func", None) is optuna.samplers.GridSampler:
                raise CompactHydraException("hydra/sweeper/sampler=grid cannot go on: a sweep of the same values can")
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            try:
                study = optuna.create_study(
                    study_name=search.study_name,
                    storage=search.storage,
                    directions=search._get_directions(),
                    load_if_exists=True,
                )
            except ValueError as error:
                raise CompactHydraException("hydra.sweeper.direction: begin a new search to change it") from error
            search.sampler.reseed_rng()  # or one with a seed would try the same values again
            trials = study.get_trials(deepcopy=False)
            assert search.config is not None
            sources = search.config.hydra.runtime.config_sources
            conf = next(Path(source.path) for source in sources if source.provider == "main")
            try:
                check_trials(trials, keys, conf)
            except UserError as error:
                raise CompactHydraException(str(error)) from error
            search.job_idx = sum(trial.state != state.WAITING for trial in trials)  # jobs are numbered as trials
            for trial in trials:
                if trial.state == state.RUNNING:
                    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                        study.enqueue_trial(trial.params)
                    study.tell(trial.number, state=state.FAIL)
                    again = study.get_trials(deepcopy=False)[-1].number
                    for folder in Path(search.sweep_dir).glob(f"{trial.number}-*"):
                        folder.rename(folder.with_name(folder.name.replace(str(trial.number), str(again), 1)))
            done = sum(trial.state == state.COMPLETE for trial in trials)
            if done:
                log.info("The search goes on after %d of %d trials.", done, search.n_trials)
            search.n_trials = max(0, search.n_trials - done)
