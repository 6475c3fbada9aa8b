"""Measure a run, or a folder of images: `python evaluate.py run=logs/runs/<name>/<time>`. Options: `--help`."""

from omegaconf import DictConfig

from ganforge.cli import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    from ganforge.evaluation import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
