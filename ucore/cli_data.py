"""The commands that look at data and make them: `ucore data inspect` and `ucore data help`."""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

HELP = "data_help.md"
Topic = Literal["all", "urbancross", "skyscript", "rsicd", "geotiles", "osm", "imagery"]


def inspect(
    path: Annotated[Path, tyro.conf.Positional],
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Say what a dataset folder, archive, OSM extract or imagery is, what is wrong with it, and which command is next.

    Exit status 0 when it can be used as it is, 2 when not. Nothing is written or unpacked.

    Args:
        path: Folder or file to look at.
        as_json: Print JSON instead of text.
    """
    from ucore.inspection import inspect_path

    result = inspect_path(path)
    print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else result.text())
    if not result.usable:
        sys.exit(2)


def explain(topic: Annotated[Topic, tyro.conf.Positional] = "all") -> None:
    """Tell where to get a dataset, and where to put it.

    Args:
        topic: Which one.
    """
    print(help_text(topic))


def help_text(topic: str = "all") -> str:
    """The section of the help about `topic`, or its introduction."""
    sections = (resources.files("ucore") / "assets" / HELP).read_text("utf-8").split("\n## ")
    texts = dict(section.split("\n", 1) for section in sections[1:])
    return (texts.get(topic) or sections[0].removeprefix("# ")).strip()


# One line a command of `ucore data`: its name and the function behind it.
DataCommand = (
    Annotated[Any, tyro.conf.subcommand("inspect", constructor=inspect)]
    | Annotated[Any, tyro.conf.subcommand("help", constructor=explain)]
)


def data(command: tyro.conf.OmitSubcommandPrefixes[DataCommand]) -> None:
    """Look at a dataset, or learn where to get one."""
