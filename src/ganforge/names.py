"""Names that strangers chose, of files or classes: in messages, on the console, and in names of files."""

import re
from collections.abc import Sequence

from ganforge.errors import printable


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a message, no more of them than a person reads."""
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def in_file_name(name: object, most: int = 100) -> str:
    """What a part of a file's name may be, of at most so many bytes: file systems end names at 255."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).encode(errors="replace")[:most].decode(errors="ignore")
