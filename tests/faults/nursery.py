"""A process that has the heavy libraries, and forks one command under test after another from itself.

A line of JSON comes in and one goes out: {"start": {...}} -> {"pid": n}; {"poll": n} -> {"status": s or null}. What a
command names as its imports is loaded here, once for all. It is then a process, a session and a group of its own, as if
a shell had started it, only seconds sooner.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def ucore(*arguments: Any) -> None:
    """A command, as a user types it."""
    from ucore import cli

    sys.argv = ["ucore", *map(str, arguments)]
    cli.main()


def become(job: dict[str, Any]) -> None:
    """In the forked child: what a command's process is when it starts."""
    os.setsid()
    for numbers, path, flags in (((0,), os.devnull, os.O_RDONLY), ((1, 2), job["log"], os.O_WRONLY | os.O_APPEND)):
        handle = os.open(path, flags | os.O_CREAT)
        for number in numbers:
            os.dup2(handle, number)
        os.close(handle)
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    import tripwire

    tripwire.arm()
    exec(compile(job["code"], "<command>", "exec"), {"__name__": "__command__", "ucore": ucore})


def main() -> None:
    import importlib

    commands = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in commands[0]:
        job = json.loads(line)
        if "start" in job:
            for name in job["start"]["imports"]:
                importlib.import_module(name)
            pid = os.fork()
            if pid == 0:
                for stream in commands:
                    os.close(stream.fileno())
                become(job["start"])
                return
            answer = {"pid": pid}
        else:
            got, status = os.waitpid(job["poll"], os.WNOHANG)
            answer = {"status": os.waitstatus_to_exitcode(status) if got else None}
        print(json.dumps(answer), file=commands[1], flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "hook"))
    main()
