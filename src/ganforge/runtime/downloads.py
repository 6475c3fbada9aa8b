"""Fetching what is not on this machine, without hanging where there is no network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ganforge.runtime.errors import UserError


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A limit for every connection inside: torch's and torchvision's downloads have none of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def weights_file(given: str | None, url: str, option: str) -> Path:
    """A file of weights: the given one, or that of a URL, which is fetched into torch's hub folder once.

    Raises UserError, naming the option that takes a file.
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
                digest = torch.hub.HASH_REGEX.search(path.name)  # as torch's own zoo has it
                torch.hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1])
        except Exception as error:  # no network, no such host, a proxy, no room ...
            raise UserError(
                f"{url} could not be fetched ({first_line(error)}). Get it elsewhere and name the file: {option}=<file>"
            ) from error
    return path


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
