"""Draw samples from a run: `python sample.py run=logs/runs/<name>/<time>`. All options: `python sample.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from ganforge.cli import entry_point


@entry_point("sample")
def main(config: DictConfig) -> None:
    from ganforge.experiment import load_run
    from ganforge.sampling import draw, walk, write

    _, model = load_run(config.run, config.checkpoint)
    samples = (walk if config.interpolate else draw)(model, config.num_samples, config.seed)
    kind = "walk" if config.interpolate else "samples"
    columns = 8 if config.interpolate else None
    name = f"{kind}-seed-{config.seed}"
    print(write(samples, Path(config.output), name, config.format if config.separate else None, columns))


if __name__ == "__main__":
    main()
