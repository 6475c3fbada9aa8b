"""Draw samples from a run, such as `python sample.py run=logs/runs/<name>/<time>`. Options: `--help`."""

from omegaconf import DictConfig

from ganforge.cli.entry_point import entry_point


@entry_point("sample")
def main(config: DictConfig) -> None:
    from ganforge.commands.sample import sample

    sample(config)


if __name__ == "__main__":
    main()
