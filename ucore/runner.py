"""Notebooks as strict programs: a typo stops them before a kernel starts, a failure stops them with an error,
and the executed notebook and its HTML are kept either way.

    run_notebook("04", parse_parameters(["dataset=../data/rsicd", "scale=tiny"]))
"""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ucore
from ucore import errors
from ucore.errors import ConfigError, UserError
from ucore.files import atomic_path, only_writer, require_writable
from ucore.notebooks import cell_heading, checked_parameters, find_notebook, notebook_cells
from ucore.signals import patience

WIDGET = "application/vnd.jupyter.widget-view+json"
# The page must open without a network: no require.js, MathJax, Mermaid or widget manager from a CDN.
HTML_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block data_png scoped %}{# this template of nbconvert's leaves the alternative text out #}
{%- set alt = output | get_metadata('alt', 'image/png') -%}
{{ super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) if alt else super() }}
{%- endblock data_png %}
"""
_managers: set[Any] = set()  # of the kernels that run now
_stopping = threading.Event()


class NotebookError(Exception):
    """A notebook stopped; the message names the cell, the cause and the kept notebook. The CLI exits with 1."""


class RunResult(NamedTuple):
    """Where a finished notebook lies: executed .ipynb, its .html (None if not asked for), and the seconds it took."""

    path: Path
    html: Path | None
    seconds: float


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "runs/notebooks",
    html: bool = True,
    progress: bool = True,
    timeout: int | None = None,
    threads: int | None = None,
    place: int = 0,
) -> RunResult:
    """Execute a notebook into `out`/<name>/<name>.ipynb, with its HTML beside it.

    The kernel is this very Python, in the current folder. `timeout` limits each cell, in seconds; `threads` are those
    that the kernel's arithmetic may use, None: as many as the shell allows; `place` is the progress bar's line when
    several notebooks run at once, each in a thread: `stop_notebooks` stops them. However the run
    ends (failed cell, dead kernel, Ctrl-C), what was executed is kept. Raises ConfigError for an unknown notebook
    or parameter or a wrong type, before anything starts; NotebookError when a cell fails; the cell's own error when
    that is a UserError; UserError while another process runs it into the same folder.
    """
    source = find_notebook(notebook)
    checked = checked_parameters(source, parameters or {})
    kept = Path(out) / source.stem / source.name
    page = kept.with_suffix(".html")
    if kept.resolve() == source.resolve():
        raise ConfigError(f"Running {source} would overwrite it. Choose another --out folder than {out}.")
    require_writable(kept.parent)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(kept.parent):
        for stale in (kept, page):
            stale.unlink(missing_ok=True)
        started = time.perf_counter()
        watch = _Watch(source.stem, len(notebook_cells(source)) + bool(checked), progress, place)
        try:
            _execute(source, kept, checked, timeout, threads, watch)
            watch.bar.n = watch.bar.total
        finally:
            seconds = time.perf_counter() - started
            watch.bar.close()
            if kept.is_file():
                _finish(kept, page if html else None, checked, seconds, watch)
    return RunResult(kept, page if html else None, seconds)


class _Watch:
    """Follows a running notebook: which section, for the progress bar, and which cell, for an error."""

    def __init__(self, name: str, cells: int, show: bool, place: int):
        from tqdm import tqdm

        self.name = name
        layout = "{l_bar}{bar}| cell {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        look: dict[str, Any] = {"bar_format": layout, "dynamic_ncols": True, "position": place, "leave": not place}
        self.bar = tqdm(total=cells, desc=name, disable=not show, **look)
        self.index = 0  # of the running cell
        self.code_cells = 0  # started so far: the n of In [n]
        self.first_line = ""
        self.fault: tuple[str, str] | None = None  # (name, message) of a stop that left no traceback in its cell

    def on_cell_start(self, cell: Any, cell_index: int) -> None:
        if _stopping.is_set():
            raise KeyboardInterrupt
        self.index = cell_index
        if heading := cell_heading(cell):
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


def _execute(
    source: Path, kept: Path, parameters: dict[str, Any], timeout: int | None, threads: int | None, watch: _Watch
) -> None:
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
            kernel_manager_class=_this_python(threads),
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


def stop_notebooks() -> None:
    """Ctrl-C for all notebooks that run in threads of this process, where only the main thread hears one.

    A cell that runs gets it once, so that it can save its state; no other cell starts. One that does not end is killed
    after a while. For good: the process is to end.
    """
    _stopping.set()
    _signal_kernels(signal.SIGINT)
    last = threading.Timer(patience(), _signal_kernels, [signal.SIGKILL])
    last.daemon = True
    last.start()


def _signal_kernels(number: int) -> None:
    for manager in list(_managers):
        if manager.has_kernel:
            with suppress(ProcessLookupError):
                os.kill(manager.provisioner.pid, number)


def _this_python(threads: int | None) -> type:
    """A kernel manager whose kernel is this interpreter, whatever kernels are registered on the machine."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # An empty MPLBACKEND lets the kernel choose inline figures, also where the shell has set another backend.
    # Log level 50: what goes wrong in a kernel is raised here, its own log only breaks the progress bar.
    share = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "UCORE_CORES"), str(threads))
    spec = KernelSpec(**get_kernel_dict(["--log-level=50"]), env={"MPLBACKEND": "", **share})

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

        async def _async_launch_kernel(self, *arguments: Any, **settings: Any) -> None:
            await super()._async_launch_kernel(*arguments, **settings)
            _managers.add(self)

        async def _async_finish_shutdown(self, waittime: float | None = None, *others: Any, **settings: Any) -> None:
            # Half of it is for a stopped cell to save its checkpoint.
            await super()._async_finish_shutdown(2 * patience(), *others, **settings)

        async def _async_cleanup_resources(self, *arguments: Any, **settings: Any) -> None:
            _managers.discard(self)
            await super()._async_cleanup_resources(*arguments, **settings)

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
