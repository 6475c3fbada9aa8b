"""Compare runs, such as `python compare.py runs=logs/sweeps/<name>/<time>`. Options: `--help`."""

from omegaconf import DictConfig

from ganforge.cli.entry_point import entry_point


@entry_point("compare")
def main(config: DictConfig) -> None:
    from ganforge.commands.compare import compare

    compare(config)


if __name__ == "__main__":
    main()
