"""Loggers that go on where a killed run's stopped."""

import csv
from io import StringIO
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from ganforge.files import write_whole


def continue_csv(logger: CSVLogger, step: int) -> None:
    """Have a CSV logger go on after a step: Lightning's deletes the `metrics.csv` that it finds."""
    path, aside = (Path(logger.log_dir, name) for name in ("metrics.csv", "metrics.csv.before"))
    if aside.is_file():  # killed while it was written anew
        aside.replace(path)
    if not path.is_file():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = sorted(reader.fieldnames or ())
        whole = (row for row in reader if None not in row.values())  # the last line may be half a one
        rows = [row for row in whole if str(row.get("step")).isdecimal() and int(row["step"]) <= step]
    path.rename(aside)
    logger.experiment.metrics_keys = names
    text = StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
    aside.unlink()
