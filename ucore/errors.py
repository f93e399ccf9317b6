"""Errors whose text tells a person what is wrong, where, and what to do next.

Everything a user can cause raises a `UserError`; the command line prints its one sentence and
exits with status 2, without a traceback. Anything else is a defect of ucore and keeps its traceback.
"""


class UserError(Exception):
    """Something the user can put right; the message names what, where and the next step."""


class DataError(UserError):
    """A dataset folder or file cannot be used as it is."""


class CheckpointError(UserError):
    """Weights cannot be loaded: missing, unsafe, cut short, or of another architecture."""


class ConfigError(UserError):
    """A setting or parameter is unknown or out of range."""
