"""Text that may come from strangers, made safe for messages, terminals and file names."""

import re
from collections.abc import Sequence
from unicodedata import category


def is_printable(text: str) -> bool:
    """Whether a text has nothing in it that a terminal obeys, or that ends a line."""
    return all(character.isprintable() or category(character) == "Zs" for character in text)


def printable(text: object) -> str:
    """A text with control characters spelled out, also line ends: \\n."""
    characters = str(text)
    return "".join(c if is_printable(c) else c.encode("unicode_escape").decode() for c in characters)


def join_names(names: Sequence[str], most: int = 20) -> str:
    """Names in a message, no more of them than a person reads."""
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def safe_file_name(name: object, most: int = 100) -> str:
    """What a part of a file's name may be, of at most so many bytes: file systems end names at 255."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).encode(errors="replace")[:most].decode(errors="ignore")
