"""What a notebook accepts: found by number or name, its parameters read and checked before any kernel starts."""

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ucore
from ucore.config import did_you_mean
from ucore.errors import ConfigError, without_secrets
from ucore.files import parse_json, syntax_tree

# What Python's own parsers raise on texts that are no code, or are meant to break them.
UNREADABLE = (SyntaxError, tokenize.TokenError, ValueError, TypeError, MemoryError, RecursionError)


class Parameter(NamedTuple):
    """One assignment of a notebook's `parameters` cell: its literal value and the comment beside it."""

    default: Any
    help: str


def find_notebook(name: str | Path) -> Path:
    """The notebook meant by "04", "4", "04_train", "04_train.ipynb" or a path.

    Looks in notebooks/ beside the package, else in ./notebooks. Raises ConfigError listing what exists when there
    is none or more than one.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    beside_package = Path(ucore.__file__).parents[1] / "notebooks"
    folder = beside_package if beside_package.is_dir() else Path.cwd() / "notebooks"
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"), key=lambda path: path.stem)}
    if not found:
        raise ConfigError(f"No notebooks in {folder}. Run this from the repository's folder, or give a path to one.")
    wanted = str(name).removesuffix(".ipynb")
    if wanted in found:
        return found[wanted]
    number = wanted.lstrip("0") or "0"
    matches = [stem for stem in found if wanted.isdecimal() and re.match(rf"0*{number}_", stem)]
    if len(matches) == 1:
        return found[matches[0]]
    if matches:
        raise ConfigError(f"{str(name)!r} fits several notebooks: {', '.join(matches)}. Give the whole name.")
    close = did_you_mean(wanted, found)
    raise ConfigError(f"There is no notebook {str(name)!r}{close}. There are: {', '.join(found)}.")


def notebook_parameters(path: str | Path) -> dict[str, Parameter]:
    """What the notebook's cell tagged `parameters` assigns, in order: name -> (default, comment).

    Python's own parser reads the cell, so a comment or a text may hold `=` and `#`; papermill's line pattern drops
    such a parameter without a word. Raises ConfigError for a file that is no notebook or a default that is no literal.
    """
    path = Path(path)
    source = next(
        (_source(cell) for cell in notebook_cells(path) if "parameters" in cell["metadata"].get("tags", [])), ""
    )
    try:
        statements = syntax_tree(source).body
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}
    except UNREADABLE as error:
        raise ConfigError(f"The parameters cell of {path} is not plain Python: {error}.") from error
    parameters = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(targets[0], ast.Name):
            continue
        try:
            default = None if statement.value is None else ast.literal_eval(statement.value)
        except UNREADABLE as error:
            text = ast.get_source_segment(source, statement) or targets[0].id
            raise ConfigError(f"In the parameters cell of {path}, {text!r} must assign a plain value.") from error
        parameters[targets[0].id] = Parameter(default, comments.get(statement.end_lineno or statement.lineno, ""))
    return parameters


def notebook_help(name: str | Path) -> str:
    """The notebook's title and its parameters, one a line, with defaults and comments."""
    path = find_notebook(name)
    shown = {f"{name}={default!r}": help for name, (default, help) in notebook_parameters(path).items()}
    width = max(map(len, shown), default=0)
    lines = [f"  {left:<{width}}  {help}".rstrip() for left, help in shown.items()]
    above = "Parameters (change one with -p name=value):" if lines else "It has no parameters."
    return "\n".join([f"{path.stem}: {notebook_title(path)}", above, *lines])


def notebook_title(path: Path) -> str:
    """The first heading, which asks the notebook's question."""
    return next((heading for cell in notebook_cells(path) if (heading := cell_heading(cell))), "")


def notebook_cells(path: Path) -> list[dict[str, Any]]:
    """All cells, as the file has them, each with `metadata`. Raises ConfigError for a file that is no notebook."""
    # Plain JSON, because importing nbformat costs more than a second and a typo should be refused at once.
    try:
        cells = [{"metadata": {}, **cell} for cell in parse_json(path.read_text("utf-8"))["cells"]]
        if not all(map(_is_cell, cells)):
            raise ValueError("a cell is damaged")
        return cells
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "it has no cells" if isinstance(error, KeyError | TypeError) else str(error)
        raise ConfigError(f"{path} is not a Jupyter notebook (format 4): {reason}.") from error


def _is_cell(cell: Mapping[str, Any]) -> bool:
    source, metadata = cell.get("source"), cell["metadata"]
    lines = source if isinstance(source, list) else [source]
    if not all(isinstance(line, str) for line in (*lines, cell.get("cell_type"))) or not isinstance(metadata, dict):
        return False
    return isinstance(metadata.get("tags", []), list)


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells, in order."""
    return [_source(cell) for cell in notebook_cells(path) if cell["cell_type"] == "code"]


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])  # on disk a list of lines, in memory one string


def cell_heading(cell: Mapping[str, Any]) -> str:
    """The text of a Markdown cell's first heading; "" where there is none."""
    match = re.search(r"^#{1,6}\s+(.+)", _source(cell), re.MULTILINE) if cell["cell_type"] == "markdown" else None
    return match.group(1).strip() if match else ""


# --- parameters ---------------------------------------------------------------------------------------------


def parse_parameters(items: Iterable[str]) -> dict[str, Any]:
    """["epochs=3", "lr=1e-3", "seeds=[0, 1]", "out=runs/a"] -> {"epochs": 3, "lr": 0.001, ...}.

    true, false, null, numbers, [lists] of these and "quoted text" mean what they look like; all else is text, and
    text that is a relative path counts from the current folder. Raises ConfigError for a missing `=` or a name
    given twice.
    """
    parameters: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{item!r} is not a parameter: write name=value, for instance -p seed=1")
        if name in parameters:
            raise ConfigError(f"The parameter {name!r} is given twice; keep one of them.")
        try:
            parameters[name] = _value(text.strip())
        except RecursionError as error:
            raise ConfigError(f"The parameter {name!r} holds brackets in brackets; write name=[1, 2].") from error
    return parameters


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _texts(value: Any) -> Iterator[str]:
    """Every text in a plain value, however deep."""
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def checked_parameters(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` with paths as text, or ConfigError when the notebook has no such parameter or type."""
    declared = notebook_parameters(path)
    checked = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in parameters.items()}
    for name, value in checked.items():
        try:
            secret = any(without_secrets(text) != text for text in _texts(value))
        except RecursionError as error:
            raise ConfigError(f"The parameter {name!r} of {path.stem} is nested too deeply") from error
        if secret:  # an executed notebook shows its parameters
            raise ConfigError(
                f"The parameter {name!r} of {path.stem} holds an address with a password or a key, which would be "
                "written into the executed notebook. Fetch the file first and give its path, or use an address without."
            )
        if name not in declared:
            known = did_you_mean(name, declared) or f"; it has {', '.join(declared) or 'none'}"
            raise ConfigError(f"{name!r} is not a parameter of {path.stem}{known}")
        default = declared[name].default
        plain = isinstance(value, str | int | float | list | dict | None)
        same = default is None or type(value) is type(default) or (type(default) is float and type(value) is int)
        if not (plain and same):
            kind = "plain values" if default is None else f"{type(default).__name__} values like {default!r}"
            hint = f"""; as text, write -p {name}='"{value}"'""" if isinstance(default, str) else ""
            raise ConfigError(f"The parameter {name!r} of {path.stem} takes {kind}, not {value!r}{hint}")
    return checked
