"""Draw samples from a run: `python sample.py run=logs/runs/<name>/<time>`. All options: `python sample.py --help`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ganforge.cli import entry_point


@entry_point("sample")
def main(config: DictConfig) -> None:
    from ganforge.experiment import load_run
    from ganforge.sampling import WALK, check_request, conditions_of, draw, translate, walk, write

    record, model, *_ = load_run(config.run, config.checkpoint)
    labels = config.labels if config.labels is None or OmegaConf.is_list(config.labels) else [config.labels]
    check_request(model, config)
    output = Path(config.output).expanduser()
    if config.input:
        for path in translate(model, Path(config.input).expanduser(), output):
            print(path)
        return
    conditions = conditions_of(model, record, labels)
    samples = (walk if config.interpolate else draw)(model, config.num_samples, config.seed, conditions)
    name = f"{'walk' if config.interpolate else 'samples'}-seed-{config.seed}"
    if labels is not None:
        name += ("-labels-" + "-".join(map(str, labels)))[:100]  # file systems end names at 255 bytes
    columns, rows = (WALK, None) if config.interpolate else (None, labels)
    if conditions is not None and not config.interpolate:
        columns = len(samples) // len(conditions)
    print(write(samples, output, name, config.format if config.separate else None, columns, rows))


if __name__ == "__main__":
    main()
