"""Files that are there whole or not at all, also after a kill or a power cut."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: Any) -> None:
    """Write bytes beside their place, and move them there once they are safely on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A json; empty where there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder has one to go on from, intact or not."""
    return any((run / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))


def is_intact(path: Path) -> bool:
    """Whether every record of what torch saved has the CRC-32 that torch wrote with it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False
