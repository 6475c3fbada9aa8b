"""What every command does first, done once in the process that the commands of the tests are forked from."""

import gc
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import torch._dynamo  # which several ranks need
import torch.utils.tensorboard
import torchmetrics  # noqa: F401
from hydra import compose, initialize_config_dir

import ganforge
from ganforge.cli.resolvers import register_resolvers
from ganforge.pictures import scatter

for module in walk_packages(ganforge.__path__, "ganforge."):
    import_module(module.name)
register_resolvers()
# Hydra finds its plugins, and its parsers fill their tables
with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
    compose("train", ["model=gan", "data=ring", "+names=[a,'b']"])
scatter(torch.zeros(2, 2))  # Matplotlib looks for its fonts
gc.freeze()  # or each command's garbage collections would visit all of this
