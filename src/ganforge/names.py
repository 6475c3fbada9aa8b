"""Names that strangers chose, of files or classes: in messages, on the console, and in names of files."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that steer a terminal or end a line, and of halves that no terminal takes."""


def shown(name: str | Path) -> str:
    """A name on one line, with escapes in place of what a terminal would obey."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _CONTROLS else character
        for character in str(name)
    )


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a message, no more of them than a person reads."""
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def in_file_name(name: object, most: int = 100) -> str:
    """What a part of a file's name may be, of at most so many bytes: file systems end names at 255."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).encode(errors="replace")[:most].decode(errors="ignore")
