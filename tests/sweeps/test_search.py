"""Searches by Optuna: what is searched, grids, pruning, and resuming."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from test_sweeps import TINY, jobs_of, the_sweep

from ganforge.sweeps.job import SweepStopped
from ganforge.sweeps.search import OptunaSweeper, _distribution

optuna = pytest.importorskip("optuna", minversion="5")

SEARCH = ["hydra/sweeper=optuna", "model.generator_optimizer.lr=interval(1e-5,1e-2)"]

Objective = Callable[[list[str]], float | None]


class FakeLauncher:
    """Computes the objective of a job from its overrides."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.jobs: list[tuple[int, list[str]]] = []

    def launch(self, job_overrides: Sequence[list[str]], initial_job_idx: int) -> list[JobReturn]:
        self.jobs += enumerate(job_overrides, initial_job_idx)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=self.objective(each)) for each in job_overrides]


def search(folder: Path, *arguments: str, objective: Objective = lambda _: 1.0, **options: Any) -> FakeLauncher:
    """Run a search without processes."""
    sampler = options.get("sampler", optuna.samplers.RandomSampler(seed=0))
    defaults = {"n_trials": 3, "n_jobs": 1, "direction": "minimize", "study_name": "search", "sampler": sampler}
    sweeper = OptunaSweeper(storage=f"sqlite:///{folder}/search.db", **{**defaults, **options})
    sweeper.launcher = launcher = FakeLauncher(objective)  # type: ignore[assignment]
    sweeper.hydra_context = SimpleNamespace(config_loader=None)  # type: ignore[assignment]
    main = {"provider": "main", "path": str(ROOT / "conf"), "schema": "file"}
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "runtime": {"config_sources": [main]}}})
    sweeper.sweep(list(arguments))
    return launcher


def study_in(folder: Path) -> Any:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")


def test_sweeps_become_distributions() -> None:
    distributions = optuna.distributions
    for value, expected in {
        "interval(1e-5,1e-2)": distributions.FloatDistribution(1e-5, 1e-2),
        "int(interval(2,9))": distributions.IntDistribution(2, 9),
        "tag(log,interval(1e-5,1e-2))": distributions.FloatDistribution(1e-5, 1e-2, log=True),
        "tag(log,int(interval(1,64)))": distributions.IntDistribution(1, 64, log=True),
        "range(1,8,step=2)": distributions.IntDistribution(1, 7, step=2),
        "range(9,3,step=-3)": distributions.IntDistribution(6, 9, step=3),
        "range(0.5,2,step=0.5)": distributions.FloatDistribution(0.5, 1.5, step=0.5),
        "choice(hinge,minimax)": distributions.CategoricalDistribution(["hinge", "minimax"]),
        "choice([16,8],'a b')": distributions.CategoricalDistribution(["[16,8]", "a\\ b"]),
        "1,null": distributions.CategoricalDistribution(["1", "null"]),
    }.items():
        assert _distribution(OverridesParser.create().parse_override(f"x={value}")) == expected


def test_bounds_that_make_no_sense_are_named() -> None:
    for value in ("interval(0.1,0.01)", "tag(log,interval(0,1))"):
        override = OverridesParser.create().parse_override(f"a.lr={value}")
        with pytest.raises(CompactHydraException, match=r"^a\.lr="):
            _distribution(override)


@pytest.mark.slow
def test_jobs_keep_the_order_of_the_command(tmp_path: Path) -> None:
    """The last of two values of one option holds."""
    launcher = search(tmp_path, "a=1", "b=choice(2)", "a=choice(3)", "c=4", n_trials=1)
    assert launcher.jobs == [(0, ["a=1", "b=2", "a=3", "c=4"])]


def test_a_failed_trial_does_not_end_a_search(tmp_path: Path) -> None:
    values = iter([None, 3.0, float("nan"), 2.0])
    launcher = search(tmp_path, "seed=range(9)", "loss=hinge", objective=lambda _: next(values), n_trials=4, n_jobs=2)
    assert [number for number, _ in launcher.jobs] == [0, 1, 2, 3]
    assert all(overrides[1] == "loss=hinge" for _, overrides in launcher.jobs)
    states = optuna.trial.TrialState
    study = study_in(tmp_path)
    assert [trial.state for trial in study.trials] == [states.FAIL, states.COMPLETE] * 2
    assert (study.best_trial.number, study.best_value) == (3, 2.0)
    with pytest.raises(CompactHydraException, match="cannot change for an existing study: start a new search"):
        search(tmp_path, "seed=range(9)", direction="maximize")
    (tmp_path / "search.db").write_bytes(b"no database" * 99)
    with pytest.raises(CompactHydraException, match="is not a valid storage for Optuna"):
        search(tmp_path, "seed=range(9)")


@pytest.mark.slow
def test_a_grid_that_was_killed_is_completed(tmp_path: Path) -> None:
    def killed_at_hinge(overrides: list[str]) -> float | None:
        if "loss=hinge" in overrides:
            raise SweepStopped(15)
        return None if "seed=3" in overrides else 1.0

    grid = ["loss=minimax,hinge", "seed=range(1,6,step=2)"]
    with pytest.raises(SweepStopped):
        search(tmp_path, *grid, objective=killed_at_hinge, sampler="grid", n_trials=20)
    launcher = search(tmp_path, *grid, sampler="grid", n_trials=20)
    assert sorted(overrides for _, overrides in launcher.jobs) == [
        ["loss=hinge", "seed=1"],
        ["loss=hinge", "seed=3"],
        ["loss=hinge", "seed=5"],
        ["loss=minimax", "seed=3"],
    ]
    assert search(tmp_path, *grid, sampler="grid", n_trials=20).jobs == []
    (tmp_path / "other").mkdir()
    with pytest.raises(CompactHydraException, match=r"seed: .*=grid needs choice\(\.\.\.\) or range\(\.\.\.\)"):
        search(tmp_path / "other", "seed=interval(0.0,1.0)", sampler="grid")


def test_a_resumed_search_suggests_new_values(tmp_path: Path) -> None:
    first = search(tmp_path, "data.noise=interval(0.0,1.0)")
    more = search(tmp_path, "data.noise=interval(0.0,1.0)", n_trials=6)
    assert [number for number, _ in more.jobs] == [3, 4, 5]
    assert len({overrides[0] for _, overrides in [*first.jobs, *more.jobs]}) == 6


def test_a_search_that_was_killed_resumes(tmp_path: Path) -> None:
    quick = [*TINY, "trainer.max_steps=4", "callbacks.pruning.startup_trials=1"]
    result = run("train.py", "-m", *quick, *SEARCH, "hydra.sweeper.n_trials=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sweep = the_sweep(tmp_path)
    study, states = study_in(sweep), optuna.trial.TrialState
    (first,), (job,) = study.trials, jobs_of(sweep)
    scores = json.loads((sweep / job / "metrics.json").read_text())
    assert first.value == scores["sliced_wasserstein"]["best"]["value"]
    assert first.intermediate_values.keys() == {2, 4}
    killed = study.ask({"model.generator_optimizer.lr": optuna.distributions.FloatDistribution(1e-5, 1e-2)})
    value = killed.params["model.generator_optimizer.lr"]
    shutil.copytree(sweep / job, sweep / f"1-lr={value}")  # killed after its end, before Optuna was told
    for _ in range(3):  # trials that nothing can be worse than
        best = optuna.trial.create_trial(
            params=killed.params, distributions=killed.distributions, value=0.0, intermediate_values={2: 0.0, 4: 0.0}
        )
        study.add_trial(best)
    again = run("train.py", f"sweep={sweep}", "hydra.sweeper.n_trials=6", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "The search resumes after 4 of 6 trials" in again.stderr
    trials = study_in(sweep).trials
    assert len(trials) == 7
    assert trials[1].state == states.FAIL
    assert trials[5].params == killed.params, "the killed trial is tried again"
    assert trials[5].value == first.value, "from where it was"
    assert "This run is finished" in again.stderr
    assert jobs_of(sweep)[1] == f"5-lr={value}"
    assert jobs_of(sweep)[2].startswith("6-")
    assert trials[6].state == states.PRUNED
    assert trials[6].intermediate_values.keys() == {2}
    assert "Pruned at step 2: sliced_wasserstein is worse than the median of the other trials." in again.stderr


def test_an_untrusted_search_sets_nothing_else(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/search.db", study_name="search")
    study.enqueue_trial({"+hydra.job.env_set.GANFORGE_TRUST": "os"})
    with pytest.raises(CompactHydraException, match=r"A trial of this search sets \+hydra\.job\.env_set\.GANFORGE_TRU"):
        search(tmp_path, "seed=choice(0,1)")


def test_a_search_needs_something_to_search_for(tmp_path: Path) -> None:
    with pytest.raises(CompactHydraException, match="has nothing to search: give an option several values"):
        search(tmp_path, "seed=0")
    options = ["hydra.sweeper.n_trials=1", "hydra.sweeper.direction=maximize"]
    result = run("train.py", "-m", *TINY, *SEARCH, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert "sliced_wasserstein needs hydra.sweeper.direction=minimize" in result.stderr
    assert "Traceback" not in result.stderr
    assert "No trial produced a value" in result.stderr


@pytest.mark.slow
def test_a_search_needs_a_metric(tmp_path: Path) -> None:
    result = run("train.py", "-m", *TINY, *SEARCH, "hydra.sweeper.n_trials=1", "evaluate_every=null", cwd=tmp_path)
    assert result.returncode == 1
    assert "set metrics.monitor= and evaluate_every=" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "cmaes", "grid"])
def test_samplers(tmp_path: Path, sampler: str) -> None:
    space = ["model.discriminator_optimizer.lr=range(0.01,0.03,step=0.01)", "seed=range(0,2)"]
    options = [f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=3", "hydra.launcher.n_jobs=2"]
    result = run("train.py", "-m", *TINY, SEARCH[0], *space, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(jobs_of(the_sweep(tmp_path))) == 3
