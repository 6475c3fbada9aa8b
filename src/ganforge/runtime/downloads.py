"""Downloads that fail, rather than hang, without a network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ganforge.runtime.errors import UserError


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Set a timeout for all connections within: torch's and torchvision's downloads have none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def weights_file(given: str | None, url: str, option: str) -> Path:
    """The path of a weights file: the given one, or that of a URL, downloaded into torch's hub folder once.

    Raises UserError that names the option for a file.
    """
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"{option}={given}: there is no such file")
        return path
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with time_limit(10):
                digest = torch.hub.HASH_REGEX.search(path.name)  # torch's convention: name-digest.pth
                torch.hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1])
        except Exception as error:  # no network, unknown host, proxy, full disk ...
            raise UserError(
                f"{url} could not be downloaded ({first_line(error)}). Get the file elsewhere and pass {option}=<file>"
            ) from error
    return path


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return (str(error) or type(error).__name__).partition("\n")[0]
