"""Lines on the console and in `train.log`."""

import logging
from copy import copy
from pathlib import Path

from ganforge.runtime.text import printable

TEXTS = (str, Path, BaseException)


class Formatter(logging.Formatter):
    """Spells out control characters: what a config or a file's name holds cannot steer a terminal, or begin a line.

    Only the message itself may have several lines, not what is put into it.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            args = tuple(printable(part) if isinstance(part, TEXTS) else part for part in record.args)
            record = copy(record)
            record.args = args
        return "\n".join(map(printable, super().format(record).split("\n")))
