"""Errors that a person can cause and mend."""


class UserError(ValueError):
    """A mistake in what was asked for: one short message that names the option and says what to do.

    The entry points print the message alone and exit with status 2; `HYDRA_FULL_ERROR=1` adds the traceback.
    """
