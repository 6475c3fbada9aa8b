"""Lines on the console and in `train.log`."""

import logging
from copy import copy
from pathlib import Path

from ganforge.runtime.text import printable

ESCAPED = (str, Path, BaseException)
"""Types of arguments that may hold text from a config or a file name."""


class Formatter(logging.Formatter):
    """Escapes control characters, so that text from a config or a file name cannot control the terminal.

    A message may have several lines, its arguments may not.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            args = tuple(printable(part) if isinstance(part, ESCAPED) else part for part in record.args)
            record = copy(record)
            record.args = args
        return "\n".join(map(printable, super().format(record).split("\n")))
