"""Bicubic interpolation, the baseline of super-resolution."""

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.data.base import Batch
from ganforge.runtime.errors import UserError


class Bicubic(LightningModule):
    """Interpolates the low-resolution image to the size of the ground truth, like MATLAB's imresize."""

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        assert batch.condition is not None
        return interpolate(batch.condition, batch.real.shape[-2:], mode="bicubic", antialias=True).expand_as(batch.real)

    def configure_optimizers(self) -> None:
        raise UserError("model=bicubic has no weights to train: use evaluate.py")
