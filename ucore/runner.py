"""Notebooks as strict programs: a typo stops them before a kernel starts, a failure stops them with an error,
and the executed notebook and its HTML are kept either way.

    run_notebook("04", parse_parameters(["dataset=../data/rsicd", "scale=tiny"]))
"""

import ast
import io
import json
import logging
import os
import re
import time
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ucore
from ucore import errors
from ucore.config import did_you_mean
from ucore.errors import ConfigError, UserError
from ucore.files import atomic_path

WIDGET = "application/vnd.jupyter.widget-view+json"
# The page must open without a network: no require.js, MathJax, Mermaid or widget manager from a CDN.
HTML_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""


class NotebookError(Exception):
    """A notebook stopped; the message names the cell, the cause and the kept notebook. The CLI exits with 1."""


class Parameter(NamedTuple):
    """One assignment of a notebook's `parameters` cell: its literal value and the comment beside it."""

    default: Any
    help: str


class RunResult(NamedTuple):
    """Where a finished notebook lies: executed .ipynb, its .html (None if not asked for), and the seconds it took."""

    path: Path
    html: Path | None
    seconds: float


# --- finding a notebook and reading what it accepts ---------------------------------------------------------


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
    matches = [stem for stem in found if wanted.isdecimal() and re.match(rf"0*{int(wanted)}_", stem)]
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
    source = next((_source(cell) for cell in _cells(path) if "parameters" in cell["metadata"].get("tags", [])), "")
    try:
        statements = ast.parse(source).body
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}
    except SyntaxError as error:
        raise ConfigError(f"The parameters cell of {path} is not plain Python: {error}.") from error
    parameters = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(targets[0], ast.Name):
            continue
        try:
            default = None if statement.value is None else ast.literal_eval(statement.value)
        except ValueError as error:
            text = ast.unparse(statement)
            raise ConfigError(f"In the parameters cell of {path}, {text!r} must assign a plain value.") from error
        parameters[targets[0].id] = Parameter(default, comments.get(statement.end_lineno or statement.lineno, ""))
    return parameters


def notebook_help(name: str | Path) -> str:
    """The notebook's title and its parameters, one a line, with defaults and comments."""
    path = find_notebook(name)
    title = next((heading for cell in _cells(path) if (heading := _heading(cell))), "")
    shown = {f"{name}={default!r}": help for name, (default, help) in notebook_parameters(path).items()}
    width = max(map(len, shown), default=0)
    lines = [f"  {left:<{width}}  {help}".rstrip() for left, help in shown.items()]
    above = "Parameters (change one with -p name=value):" if lines else "It has no parameters."
    return "\n".join([f"{path.stem}: {title}", above, *lines])


def _cells(path: Path) -> list[dict[str, Any]]:
    # Plain JSON, because importing nbformat costs more than a second and a typo should be refused at once.
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        return [{"metadata": {}, **cell} for cell in cells]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a Jupyter notebook (format 4): {error!r}.") from error


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])  # on disk a list of lines, in memory one string


def _heading(cell: Mapping[str, Any]) -> str:
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
        parameters[name] = _value(text.strip())
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


def _checked(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` with paths as text, or ConfigError when the notebook has no such parameter or type."""
    declared = notebook_parameters(path)
    checked = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in parameters.items()}
    for name, value in checked.items():
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


# --- running ------------------------------------------------------------------------------------------------


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "runs/notebooks",
    html: bool = True,
    progress: bool = True,
    timeout: int | None = None,
) -> RunResult:
    """Execute a notebook into `out`/<name>/<name>.ipynb, with its HTML beside it.

    The kernel is this very Python, in the current folder. `timeout` limits each cell, in seconds. However the run
    ends (failed cell, dead kernel, Ctrl-C), what was executed is kept. Raises ConfigError for an unknown notebook
    or parameter or a wrong type, before anything starts; NotebookError when a cell fails; the cell's own error when
    that is a UserError.
    """
    source = find_notebook(notebook)
    checked = _checked(source, parameters or {})
    kept = Path(out) / source.stem / source.name
    page = kept.with_suffix(".html")
    if kept.resolve() == source.resolve():
        raise ConfigError(f"Running {source} would overwrite it. Choose another --out folder than {out}.")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        for stale in (kept, page):
            stale.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {kept.parent} ({error.strerror}). Choose another --out folder.") from error
    started = time.perf_counter()
    watch = _Watch(source.stem, len(_cells(source)) + bool(checked), progress)
    try:
        _execute(source, kept, checked, timeout, watch)
        watch.bar.n = watch.bar.total
    finally:
        seconds = time.perf_counter() - started
        watch.bar.close()
        if kept.is_file():
            _finish(kept, page if html else None, checked, seconds, watch)
    return RunResult(kept, page if html else None, seconds)


def reproduce(
    parameters: Mapping[str, Any],
    names: Sequence[str | Path],
    out: str | Path = "runs/notebooks",
    progress: bool = True,
    timeout: int | None = None,
) -> list[RunResult]:
    """Run notebooks one after another, each with those of the shared `parameters` it declares; a line for each.

    Everything is checked before the first starts. Stops at the first failure with its error, as `run_notebook`.
    Raises ConfigError for a parameter that none of them declares.
    """
    paths = [find_notebook(name) for name in names]
    declared = {path: notebook_parameters(path) for path in paths}
    known = list(dict.fromkeys(name for parameter in declared.values() for name in parameter))
    for name in parameters:
        if name not in known:
            stems = ", ".join(path.stem for path in paths)
            raise ConfigError(f"{name!r} is not a parameter of any of {stems}{did_you_mean(name, known)}")
    shares = [_checked(path, {k: v for k, v in parameters.items() if k in declared[path]}) for path in paths]
    results = []
    for path, share in zip(paths, shares, strict=True):
        started = time.perf_counter()
        outcome = "failed"
        try:
            results.append(run_notebook(path, share, out, progress=progress, timeout=timeout))
            outcome = "ok"
        finally:
            print(f"{path.stem:<20} {time.perf_counter() - started:8.1f} s  {outcome}", flush=True)
    return results


class _Watch:
    """Follows a running notebook: which section, for the progress bar, and which cell, for an error."""

    def __init__(self, name: str, cells: int, show: bool):
        from tqdm import tqdm

        self.name = name
        layout = "{l_bar}{bar}| cell {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(total=cells, desc=name, bar_format=layout, disable=not show, dynamic_ncols=True)
        self.index = 0  # of the running cell
        self.code_cells = 0  # started so far: the n of In [n]
        self.first_line = ""
        self.fault: tuple[str, str] | None = None  # (name, message) of a stop that left no traceback in its cell

    def on_cell_start(self, cell: Any, cell_index: int) -> None:
        self.index = cell_index
        if heading := _heading(cell):
            self.bar.set_description(f"{self.name}: {heading}", refresh=False)
        self.bar.n = cell_index
        self.bar.refresh()

    def on_cell_execute(self, cell: Any, cell_index: int) -> None:
        self.code_cells += 1
        self.first_line = cell.source.strip().splitlines()[0]
        self.bar.set_postfix_str("", refresh=False)

    def write(self, text: str) -> None:
        """The kernel's stdout and stderr: the last line printed stands beside the bar."""
        lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
        if lines:
            self.bar.set_postfix_str("".join(c for c in lines[-1].strip()[:80] if c.isprintable()))

    def flush(self) -> None:
        pass

    def where(self) -> str:
        return f"cell In [{self.code_cells}] (`{self.first_line}`)" if self.code_cells else "its start"


def _execute(source: Path, kept: Path, parameters: dict[str, Any], timeout: int | None, watch: _Watch) -> None:
    """Run `source` into `kept` by papermill, turning every way to stop into one clear error."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # papermill and nbclient log what is raised here anyway, and doubt parameters that are checked already.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    plain = [str(path.absolute()).replace("{", "{{").replace("}", "}}") for path in (source, kept)]
    place = f"The executed notebook is kept: {kept}"
    try:
        papermill.execute_notebook(
            *plain,
            parameters=parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=watch,
            stderr_file=watch,
            execution_timeout=timeout,
            kernel_manager_class=_this_python(),
            on_cell_start=watch.on_cell_start,
            on_cell_execute=watch.on_cell_execute,
            iopub_timeout=60,  # seconds for outputs to arrive after a cell; the default 4 fails on a busy machine
            coalesce_streams=True,  # one text per stream, progress bars reduced to their last state
        )
    except PapermillExecutionError as error:
        family = getattr(errors, error.ename, None)
        if isinstance(family, type) and issubclass(family, UserError):
            raise family(error.evalue) from None
        cause = f"{error.ename}: {error.evalue}" if error.evalue else error.ename
        raise NotebookError(f"{watch.name} failed in {watch.where()}: {cause}. {place}") from None
    except KeyboardInterrupt:
        watch.fault = ("KeyboardInterrupt", "stopped by the user")
        raise
    except CellTimeoutError:
        watch.fault = ("TimeoutError", f"the cell was stopped after {timeout} s")
        raise NotebookError(f"{watch.name} was stopped in {watch.where()} after {timeout} s. {place}") from None
    except DeadKernelError:
        watch.fault = ("DeadKernelError", "the kernel died; the usual cause is too little memory")
        raise NotebookError(
            f"The kernel of {watch.name} died in {watch.where()}; the usual cause is too little memory. {place}"
        ) from None
    except RuntimeError as error:
        if watch.code_cells:
            raise
        raise NotebookError(f"The kernel of {watch.name} could not start: {error}. Try: make setup") from error
    except OSError as error:
        raise UserError(f"Could not write {kept}: {error}. Free some space or choose another --out.") from error


def _this_python() -> type:
    """A kernel manager whose kernel is this interpreter, whatever kernels are registered on the machine."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import Float

    # An empty MPLBACKEND lets the kernel choose inline figures, also where the shell has set another backend.
    # Log level 50: what goes wrong in a kernel is raised here, its own log only breaks the progress bar.
    spec = KernelSpec(**get_kernel_dict(["--log-level=50"]), env={"MPLBACKEND": ""})

    class ThisPython(AsyncKernelManager):
        shutdown_wait_time = Float(40.0)  # seconds; half of it for a cell stopped by Ctrl-C to save its checkpoint

        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    return ThisPython


def _finish(kept: Path, page: Path | None, parameters: dict[str, Any], seconds: float, watch: _Watch) -> None:
    """Record how `kept` was made, strip the machine's paths from it, and write its HTML `page`."""
    import nbformat

    notebook = nbformat.read(kept, as_version=4)
    notebook.metadata.setdefault("papermill", {}).update(input_path=kept.name, output_path=kept.name)
    made = {"version": ucore.__version__, "parameters": parameters, "seconds": round(seconds, 1)}
    notebook.metadata["ucore"] = made
    if watch.fault:
        name, message = watch.fault
        fault = nbformat.v4.new_output("error", ename=name, evalue=message, traceback=[f"{name}: {message}"])
        notebook.cells[watch.index].setdefault("outputs", []).append(fault)
    with atomic_path(kept) as temporary:
        nbformat.write(notebook, temporary)
    if page is not None:
        _write_html(notebook, page)


def _write_html(notebook: Any, page: Path) -> None:
    """One self-contained file. Widgets, dead without a kernel, are left out: their static twins stay."""
    from nbconvert.exporters import HTMLExporter

    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    quiet = logging.getLogger("papermill.nbconvert")  # it warns of each figure without an alternative text
    exporter = HTMLExporter(raw_template=HTML_TEMPLATE, embed_images=True, log=quiet)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": page.stem, "path": str(page.parent)}})
    with atomic_path(page) as temporary:
        temporary.write_text(body, "utf-8")
