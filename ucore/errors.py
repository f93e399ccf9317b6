"""Errors whose text tells a person what is wrong, where, and what to do next.

Everything a user can cause raises a `UserError`; the command line prints its one sentence and
exits with status 2, without a traceback. Anything else is a defect of ucore and keeps its traceback.
"""

import re

LOGIN = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s'\"<>]*@", re.IGNORECASE)
QUERY = re.compile(r"\b(https?://[^\s?'\"<>]*\?)[^\s'\"<>]+", re.IGNORECASE)
MOST_SIGNS = 2000  # of a message: names and values in it come from files, and may be of any length


class UserError(Exception):
    """Something the user can put right; the message names what, where and the next step."""

    def __str__(self) -> str:
        return printable(super().__str__())


def without_secrets(text: str) -> str:
    """`text` with addresses that name neither user, password nor query: keys stand there."""
    return QUERY.sub(r"\1...", LOGIN.sub(r"\1", text)) if "://" in text else text


def printable(text: str, most: int = MOST_SIGNS) -> str:
    """`text` as a terminal and a log may show it: without secrets in addresses, control characters spelt out, and the
    middle of an overlong text left out.
    """
    text = without_secrets(text)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[-most // 4 :]}"
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign == "\n" else " " if sign.isspace() else ascii(sign)[1:-1] for sign in text
    )


class DataError(UserError):
    """A dataset folder or file cannot be used as it is."""


class CheckpointError(UserError):
    """Weights cannot be loaded: missing, unsafe, cut short, or of another architecture."""


class ConfigError(UserError):
    """A setting or parameter is unknown or out of range."""
