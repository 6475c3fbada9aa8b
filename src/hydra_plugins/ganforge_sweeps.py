"""The launcher and the sweeper of ganforge; Hydra takes plugins from this package only."""

from ganforge.sweeps import launcher, search


class LocalLauncher(launcher.LocalLauncher):
    """`hydra/launcher=local`, the default."""


class OptunaSweeper(search.OptunaSweeper):
    """`hydra/sweeper=optuna`."""
