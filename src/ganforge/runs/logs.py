"""The files of loggers, when a run that was stopped or killed is resumed."""

import csv
from io import StringIO
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from ganforge.runtime.files import open_atomic, write_atomic


def continue_csv(logger: CSVLogger, step: int) -> None:
    """Have a CSV logger continue after a step: Lightning's deletes the `metrics.csv` that it finds."""
    path, aside = (Path(logger.log_dir, name) for name in ("metrics.csv", "metrics.csv.before"))
    if aside.is_file():  # killed while it was written anew
        aside.replace(path)
    if not path.is_file():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = sorted(reader.fieldnames or ())
        whole = (row for row in reader if None not in row.values())  # the last line may be incomplete
        rows = [row for row in whole if str(row.get("step")).isdecimal() and int(row["step"]) <= step]
    path.rename(aside)
    logger.experiment.metrics_keys = names
    text = StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
    aside.unlink()


def truncate_logs(folder: Path, step: int) -> None:
    """Remove what TensorBoard and `samples/` hold of later steps, which the resumed run logs and draws again.

    After step -1, as for a run that restarts, that is everything.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in (folder / "samples").glob("step-*.png"):
        if path.stem > f"step-{step:08d}":
            path.unlink()
    for path in event_files(folder):
        records = [record for record in RawEventFileLoader(str(path)).Load() if Event.FromString(record).step <= step]
        if not records:
            path.unlink()
            continue
        with open_atomic(path) as file:
            writer = RecordWriter(file)
            for record in records:
                writer.write(record)


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files of a run."""
    return sorted(folder.glob("events.out.tfevents.*"))
