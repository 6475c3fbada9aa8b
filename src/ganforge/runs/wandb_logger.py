"""`logger=wandb`: Weights & Biases, with runs that resume."""

import re
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ganforge.runtime.devices import rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import read_text, write_atomic


class WandB(WandbLogger):
    """Logs a run folder to one W&B run. Its id is in the file `wandb_id`, so that resuming continues it.

    `name` is the run's name in W&B, by default the last two parts of its folder. `offline` needs no account: it writes
    to the folder only, for a later `wandb sync`. The `options` are those of `wandb.init`, such as `entity` and `tags`.
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
        self.id_file = self.folder / "wandb_id"  # outside wandb/, which may hold links
        self._is_started = False
        run_id = read_text(self.id_file).strip() if self.id_file.exists() else secrets.token_hex(4)
        if not re.fullmatch(r"[0-9a-z]{8}", run_id):
            raise UserError(f"{self.id_file} does not hold the id of a W&B run: remove it to start a new one")
        try:
            super().__init__(
                name=name or "/".join(self.folder.parts[-2:]),
                save_dir=save_dir,
                version=run_id,
                offline=offline,
                project=project,
                **options,
            )
        except ModuleNotFoundError as error:
            raise UserError('logger=wandb needs: pip install -e ".[wandb]"') from error

    @property
    def experiment(self) -> Any:
        """The W&B run, which the first use starts or resumes. On ranks above 0 it does nothing."""
        if self._is_started or rank() > 0:
            return super().experiment
        import wandb

        try:
            run = super().experiment
        except wandb.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(f"logger=wandb: {reason}. logger.wandb.offline=true needs no account") from error
        self._is_started = True
        write_atomic(self.id_file, f"{self.version}\n".encode())
        self._remove_links_outside()
        return run

    def _remove_links_outside(self) -> None:
        """Remove W&B's link to a log in its cache: run folders with links to the outside are refused."""
        for path in (self.folder / "wandb").rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run, or the next run in this process would continue it."""
        super().finalize(status)
        if self._is_started:
            self.experiment.finish(exit_code=int(status != "success"))
