"""User errors, and short messages for them."""

import errno
import re

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException


class UserError(ValueError):
    """A user mistake: one short message that names the option and says what to do.

    The entry points print only the message and exit with status 2; `HYDRA_FULL_ERROR=1` adds the traceback.
    """


class Damaged(UserError):
    """A file in a run folder is damaged, or is not what its name says."""


def explanation(error: BaseException) -> str | None:
    """The message for a user error of any library; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InstantiationException):
        return _instantiation_message(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: add {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        missing = re.search(r"Interpolation key '(data\.\w+)' not found", str(error))
        if missing:
            needs = f"{error.full_key or 'The model'} needs {missing.group(1)}"
            return f"{needs}, which this dataset lacks: choose another data=..."
        return str(error).removeprefix("UserError raised while resolving interpolation: ")
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        difference = str(error).splitlines()[1].strip()
        return f"The checkpoint does not match model=: resume with the networks it was trained with. {difference}"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.strerror} while writing {error.filename or 'the run folder'}: make room and try again"
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's; importing it here would take seconds
        return f"Lightning: {error}"
    return None


def _instantiation_message(error: InstantiationException) -> str:
    cause = error.__cause__
    if cause is None:
        return str(error)
    message = str(cause)
    if not isinstance(cause, _OPTION_ERRORS):  # perhaps a bug in the class, so show where to look
        message = f"{type(cause).__name__}: {cause} (HYDRA_FULL_ERROR=1 shows where)"
    key = re.search(r"full_key: (\S+)", str(error))
    return f"{key.group(1) if key else 'trainer'}: {message}"  # only the trainer's config has no key


_OPTION_ERRORS = (ValueError, TypeError, ImportError)
"""Raised by constructors on wrong values of options."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PATH_ERRORS = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
