"""Export a run's generator, such as `python export.py run=logs/runs/<name>/<time> format=onnx`. Options: `--help`."""

from omegaconf import DictConfig

from ganforge.cli.entry_point import entry_point


@entry_point("export")
def main(config: DictConfig) -> None:
    from ganforge.commands.export import export

    export(config)


if __name__ == "__main__":
    main()
