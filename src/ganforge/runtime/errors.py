"""Errors that a person can cause and mend."""

import errno
import re

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException


class UserError(ValueError):
    """A mistake in what was asked for: one short message that names the option and says what to do.

    The entry points print the message alone and exit with status 2; `HYDRA_FULL_ERROR=1` adds the traceback.
    """


class Damaged(UserError):
    """A file of a run folder does not hold what belongs there."""


def explanation(error: BaseException) -> str | None:
    """What to tell the person about an error of theirs; None for one of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        key = re.search(r"full_key: (\S+)", str(error))
        if cause is None:
            return str(error)
        said = str(cause)
        if not isinstance(cause, _OF_VALUES):  # perhaps of the code that was called, which only its author can mend
            said = f"{type(cause).__name__}: {cause} (HYDRA_FULL_ERROR=1 shows where)"
        return f"{key.group(1) if key else 'trainer'}: {said}"  # which is not made of a config's own node
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has to be given: {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        missing = re.search(r"Interpolation key '(data\.\w+)' not found", str(error))
        if missing:
            needs = f"{error.full_key or 'The model'} needs {missing.group(1)}"
            return f"{needs}, which this dataset does not state: choose another data=..."
        return str(error).removeprefix("UserError raised while resolving interpolation: ")
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        difference = str(error).splitlines()[1].strip()
        return (
            f"The weights of the checkpoint are not those of this model: leave its networks as they were. {difference}"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.strerror} while writing {error.filename or 'the run folder'}: make room and try again"
    if isinstance(error, OSError) and error.errno in _PLACE_ERRORS and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, imported only if it was raised
        return f"trainer: {error}"
    return None


_OF_VALUES = (ValueError, TypeError, ImportError)
"""What wrong values of options end in."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PLACE_ERRORS = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
