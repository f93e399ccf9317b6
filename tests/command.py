"""The command line in this process, which has the heavy libraries already."""

import contextlib
import io
import sys
from typing import Any, NamedTuple

from ucore import cli


class Outcome(NamedTuple):
    """How a command ended: exit status and what it printed."""

    status: int | str | None
    out: str
    err: str


def ucore(*arguments: Any) -> Outcome:
    """Run a command as a user types it."""
    out, err, before, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["ucore", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = before
    return Outcome(status, out.getvalue(), err.getvalue())
