"""Untrusted text, made safe for messages, terminals and file names."""

import re
from collections.abc import Sequence
from unicodedata import category


def is_printable(text: str) -> bool:
    """Whether a text contains no control characters, line breaks included."""
    return all(character.isprintable() or category(character) == "Zs" for character in text)


def printable(text: object) -> str:
    """The text with control characters escaped, line breaks (\\n) included."""
    characters = str(text)
    return "".join(c if is_printable(c) else c.encode("unicode_escape").decode() for c in characters)


def join_names(names: Sequence[str], limit: int = 20) -> str:
    """A comma-separated list for a message, with at most `limit` names."""
    return ", ".join(map(printable, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def safe_file_name(name: object, max_bytes: int = 100) -> str:
    """The name without special characters, of at most `max_bytes` bytes: file systems allow 255 for a whole name."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).encode(errors="replace")[:max_bytes].decode(errors="ignore")
