"""Compare runs side by side: how their configs differ, what they reached, and how much they vary across seeds."""

from os.path import commonpath, lexists
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig

from ganforge.comparison.differences import protocol_notes, seed_groups, select_metrics
from ganforge.comparison.records import find_runs, is_regular_file, read_runs
from ganforge.comparison.report import report
from ganforge.comparison.summaries import runs_table, seeds_table
from ganforge.comparison.tables import print_table
from ganforge.experiment.validate import check_count, check_seed
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic


def compare(config: DictConfig) -> None:
    """Print the tables and write the report. Raises UserError."""
    check_count("num_samples", config.num_samples)
    check_seed(config.seed)
    if config.checkpoint not in ("last", "best"):
        raise UserError(f"checkpoint={config.checkpoint}: must be last or best")
    folders = find_runs(config.runs)
    output = Path(config.output or Path(commonpath(folders), "comparison.html")).expanduser()
    _check_writable(output)
    runs = read_runs(folders)
    metrics = select_metrics(runs, config.show)
    notes = protocol_notes(runs, metrics)
    tables = {"Runs": runs_table(runs, metrics)}
    if groups := seed_groups(runs):
        tables["Over seeds"] = seeds_table(groups, metrics)
    for title, columns in tables.items():
        print_table(title, columns)
    for note in notes:
        print(note)
    page = report(runs, tables, metrics, notes, config)
    write_atomic(output, page.encode(errors="replace"))
    print(f"Written to {output}")


def _check_writable(output: Path) -> None:
    if lexists(output) and not is_regular_file(output):
        raise UserError(f"output={output}: is a link, or not a regular file. Name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror}). Name another file") from error
