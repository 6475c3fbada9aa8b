"""Train a GAN, such as `python train.py model=dcgan data=mnist`. `python train.py --help` lists all options."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ganforge.cli.entry_point import entry_point


@entry_point("train")
def main(config: DictConfig) -> int:
    from ganforge.commands.train import train

    return train(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
