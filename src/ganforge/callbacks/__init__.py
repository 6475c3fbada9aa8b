"""What a run does besides training: checkpoints, samples, progress, health, pruning, graceful shutdown, traces."""

from ganforge.callbacks.checkpoints import Checkpoints
from ganforge.callbacks.health import Health
from ganforge.callbacks.progress import Progress
from ganforge.callbacks.pruning import Pruning
from ganforge.callbacks.samples import Samples
from ganforge.callbacks.shutdown import GracefulShutdown
from ganforge.callbacks.trace import Trace

__all__ = ["Checkpoints", "GracefulShutdown", "Health", "Progress", "Pruning", "Samples", "Trace"]
