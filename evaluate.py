"""Measure a run or a folder of images, such as `python evaluate.py run=logs/runs/<name>/<time>`. Options: `--help`."""

from omegaconf import DictConfig

from ganforge.cli.entry_point import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    from ganforge.commands.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
