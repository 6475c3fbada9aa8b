"""Draw samples from a run: `python sample.py run=logs/runs/<name>/<time>`. All options: `python sample.py --help`."""

from omegaconf import DictConfig

from ganforge.cli import entry_point


@entry_point("sample")
def main(config: DictConfig) -> None:
    from ganforge.sampling import sample

    sample(config)


if __name__ == "__main__":
    main()
