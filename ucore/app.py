"""The search box as a small application in the browser: a notebook of one cell, served by Voila.

Voila serves it on this machine alone unless told otherwise. Its own page would fetch icons from another host: ours is
the same without them, and asks nobody.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ucore.errors import ConfigError, DataError
from ucore.index_files import NAME
from ucore.places import place_of
from ucore.signals import patience

CELL = """from ucore.retrieve import Searcher
from ucore.search_box import SearchBox

SearchBox(Searcher({index!r}, {checkpoint!r}), {examples!r}, height=620)"""


def newest_index(runs: str | Path = "runs") -> Path:
    """The index that notebook 08 made last. Raises DataError where there is none."""
    found = sorted(Path(runs).glob(f"08_retrieve/*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(f"There is no index in {runs}/08_retrieve: name one with --index, or make it: ucore run 08")
    return found[-1].parent


def write_app(
    index: str | Path, folder: Path, examples: tuple[str, ...] = (), checkpoint: str | Path | None = None
) -> Path:
    """The application's notebook, search.ipynb in `folder`."""
    import nbformat

    place = place_of(index)
    named = place if isinstance(place, str) else str(place.resolve())
    own = None if checkpoint is None else str(Path(checkpoint).resolve())
    cells = [nbformat.v4.new_code_cell(CELL.format(index=named, checkpoint=own, examples=list(examples)))]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={**metadata, "title": "Search seen from above"})
    path = folder / "search.ipynb"
    nbformat.write(notebook, path)
    return path


def voila_command(notebook: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that serves a notebook, and the environment it needs; a template is written beside the notebook."""
    from jupyter_core.paths import jupyter_path

    pages = [Path(place) / "lab" / "index.html.j2" for place in jupyter_path("voila", "templates")]
    page = next((path for path in pages if path.is_file()), None)
    if page is None:
        raise DataError('Voila\'s template "lab" is not installed. Install voila again: pip install voila')
    own = notebook.parent / "voila" / "templates" / "ucore"
    own.mkdir(parents=True)
    (own / "conf.json").write_text(json.dumps({"base_template": "lab"}))
    (own / page.name).write_text(re.sub(r'<link[^>]*"https?://[^>]*>', "", page.read_text("utf-8")), "utf-8")
    places = os.pathsep.join(filter(None, [str(notebook.parent), os.environ.get("JUPYTER_PATH")]))
    command = [sys.executable, "-m", "voila", str(notebook), f"--port={port}", "--theme=light", "--template=ucore"]
    return command, {**os.environ, "JUPYTER_PATH": places}


def serve(
    index: str | Path, port: int = 8866, browser: bool = True, examples: tuple[str, ...] = (),
    checkpoint: str | Path | None = None,
) -> int:  # fmt: skip
    """Serve the search of an index until it is stopped; voila's exit status.

    checkpoint: where its encoder's weights are, if not where the index says. Raises ConfigError for a port out of
    range, DataError where there is no index, CheckpointError where its checkpoint is not found.
    """
    from ucore.retrieve import Searcher

    if not 0 < port < 65536:
        raise ConfigError(f"--port is {port}; choose a number from 1 to 65535")
    Searcher(index, checkpoint)  # what is wrong is told here, not in the browser
    with tempfile.TemporaryDirectory() as folder:
        command, environment = voila_command(write_app(index, Path(folder), examples, checkpoint), port)
        with subprocess.Popen([*command, *([] if browser else ["--no-browser"])], env=environment) as served:
            try:
                return served.wait()
            finally:  # SIGTERM reaches this process alone; the server ends its kernels when it is asked to
                _end(served)


def _end(served: subprocess.Popen) -> None:
    if served.poll() is None:
        served.terminate()
        try:
            served.wait(patience())
        except subprocess.TimeoutExpired:
            served.kill()
