"""Weights & Biases for runs that are resumed."""

import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ganforge.runtime.devices import rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic


class WandB(WandbLogger):
    """Logs a run folder to one W&B run, whose id `wandb_id` keeps, so that resuming continues it.

    `name` is the run's name in W&B; null: the last two parts of its folder. `offline` writes into the folder alone,
    without an account, for a later `wandb sync`. Others are those of `wandb.init`, such as `entity` and `tags`.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = None,
        project: str = "ganforge",
        offline: bool = False,
        **options: Any,
    ):
        self.folder = Path(save_dir).absolute()
        self.id_file = self.folder / "wandb_id"  # not in wandb/, where links may be
        self._has_begun = False
        kept = self.id_file.read_text().strip() if self.id_file.is_file() else secrets.token_hex(4)
        try:
            super().__init__(
                name=name or "/".join(self.folder.parts[-2:]),
                save_dir=save_dir,
                version=kept,
                offline=offline,
                project=project,
                **options,
            )
        except ModuleNotFoundError as error:
            raise UserError('it needs wandb: pip install -e ".[wandb]", or choose another logger=') from error

    @property
    def experiment(self) -> Any:
        """The W&B run, begun or resumed by the first use; on other ranks than 0 one that does nothing."""
        if self._has_begun or rank() > 0:
            return super().experiment
        import wandb

        try:
            run = super().experiment
        except wandb.Error as error:
            said = str(error).rstrip(".")
            raise UserError(f"logger=wandb: {said}. logger.wandb.offline=true needs no account") from error
        self._has_begun = True
        write_atomic(self.id_file, f"{self.version}\n".encode())
        self._remove_links_outside()
        return run

    def _remove_links_outside(self) -> None:
        """Remove the link to a log in W&B's cache: run folders with links that lead out of them are refused."""
        for path in (self.folder / "wandb").rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run: the next run in this process would be logged to it."""
        super().finalize(status)
        if self._has_begun:
            self.experiment.finish(exit_code=int(status != "success"))
