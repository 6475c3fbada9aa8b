"""Lines on the console and in `train.log`."""

import logging
from copy import copy

from ganforge.errors import printable


class Formatter(logging.Formatter):
    """Spells out control characters: what a config or a file's name holds cannot steer a terminal, or begin a line.

    Only the message itself may have several lines, not what is put into it.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy(record)
            record.args = tuple(
                part if isinstance(part, int | float) else printable(part) for part in record.args or ()
            )
        return "\n".join(map(printable, super().format(record).split("\n")))
