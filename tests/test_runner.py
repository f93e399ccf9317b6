"""The notebook runner: what it refuses before a kernel starts, what it keeps, and how each way to fail is told."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import ucore
from ucore import runner
from ucore.errors import ConfigError, DataError, UserError
from ucore.notebooks import find_notebook, notebook_help, notebook_parameters, parse_parameters
from ucore.picture import Picture
from ucore.runner import NotebookError

PARAMETERS = """# what the run needs
epochs = 3  # passes; 0 = none, epochs=1 is quick
lr: float = 1e-3
dataset = "../data#1"  # folder of the images
seeds = [
    0,
    1,
]  # one run each
quick = False
limit = None  # None: all
"""


def write_notebook(path: Path, *code: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a title, a parameters cell, and one code cell for each of `code` under a heading."""
    cells = [
        new_markdown_cell("# Does it run?\n\nThe loss is $x^2$."),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Train"),
        *map(new_code_cell, code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def series(tmp_path, monkeypatch):
    """An empty checkout: current folder, package beside notebooks/; the value is notebooks/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ucore, "__file__", str(tmp_path / "ucore" / "__init__.py"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def no_kernel(monkeypatch):
    """Fails the test as soon as papermill is asked to execute anything."""
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("a kernel would have started"))


def outputs(path: Path) -> str:
    """All outputs of a notebook as one text."""
    cells = nbformat.read(path, as_version=4).cells
    return json.dumps([output for cell in cells for output in cell.get("outputs", [])])


# --- finding notebooks, reading parameters --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["04", "4", "04_train", "04_train.ipynb", "notebooks/04_train.ipynb"])
def test_find_notebook_accepts_number_name_and_path(series, name):
    wanted = write_notebook(series / "04_train.ipynb")
    write_notebook(series / "14_other.ipynb")
    write_notebook(series / "40_more.ipynb")
    assert find_notebook(name).resolve() == wanted.resolve()


def test_find_notebook_looks_in_the_current_folder_for_an_installed_package(series, monkeypatch, tmp_path):
    monkeypatch.setattr(ucore, "__file__", str(tmp_path / "site-packages" / "ucore" / "__init__.py"))
    wanted = write_notebook(series / "07_ablations.ipynb")
    assert find_notebook("7") == wanted


def test_find_notebook_says_what_exists(series):
    with pytest.raises(ConfigError, match=r"No notebooks in .*notebooks"):
        find_notebook("04")
    write_notebook(series / "04_train.ipynb")
    write_notebook(series / "05_domain_gap.ipynb")
    with pytest.raises(ConfigError, match=r"'04_trian'; did you mean '04_train'\?.*04_train, 05_domain_gap"):
        find_notebook("04_trian")
    write_notebook(series / "04_train-Copy1.ipynb")
    with pytest.raises(ConfigError, match="several notebooks: 04_train, 04_train-Copy1"):
        find_notebook("04")
    assert find_notebook("04_train").stem == "04_train"


def test_notebook_parameters_reads_values_and_comments(tmp_path):
    assert notebook_parameters(write_notebook(tmp_path / "a.ipynb")) == {
        "epochs": (3, "passes; 0 = none, epochs=1 is quick"),
        "lr": (0.001, ""),
        "dataset": ("../data#1", "folder of the images"),
        "seeds": ([0, 1], "one run each"),
        "quick": (False, ""),
        "limit": (None, "None: all"),
    }


def test_notebook_help_lists_title_defaults_and_comments(tmp_path):
    text = notebook_help(write_notebook(tmp_path / "04_train.ipynb"))
    assert text.startswith("04_train: Does it run?\n")
    assert re.search(r"^  epochs=3 +passes; 0 = none, epochs=1 is quick$", text, re.MULTILINE)
    assert "  seeds=[0, 1]  " in text
    assert "no parameters" in notebook_help(write_notebook(tmp_path / "bare.ipynb", parameters=""))


@pytest.mark.parametrize("parameters", ["epochs = int('3')", "epochs = ", "%matplotlib inline"])
def test_a_parameters_cell_that_is_not_plain_is_refused(tmp_path, parameters):
    with pytest.raises(ConfigError, match=r"parameters cell of .*a\.ipynb"):
        notebook_parameters(write_notebook(tmp_path / "a.ipynb", parameters=parameters))


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": 3}', '{"worksheets": []}'])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.ipynb is not a Jupyter notebook"):
        notebook_parameters(tmp_path / "a.ipynb")


# --- parameters given by the user ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-2", -2), ("0.5", 0.5), ("1e-3", 0.001), ("true", True), ("False", False), ("null", None),
        ("none", None), ("../x", "../x"), ("a=b", "a=b"), ("", ""), ("'3'", "3"), ('"true"', "true"), ("yes", "yes"),
        ("2026-01-31", "2026-01-31"), ("[1, 2.5, a, true]", [1, 2.5, "a", True]), ("[]", []),
    ],
)  # fmt: skip
def test_parse_parameters_reads_scalars_and_lists(text, value):
    parsed = parse_parameters([f"name={text}"])["name"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("items", [["epochs"], ["=3"], ["epochs", "3"], ["seed=1", "seed=2"]])
def test_parse_parameters_refuses_what_is_no_assignment(items):
    with pytest.raises(ConfigError, match=r"write name=value|given twice"):
        parse_parameters(items)


def test_an_unknown_parameter_is_refused_before_a_kernel_starts(series, no_kernel):
    write_notebook(series / "04_train.ipynb")
    with pytest.raises(ConfigError) as caught:
        runner.run_notebook("04", {"epoch": 3})
    assert str(caught.value) == "'epoch' is not a parameter of 04_train; did you mean 'epochs'?"
    with pytest.raises(ConfigError, match="it has epochs, lr, dataset, seeds, quick, limit"):
        runner.run_notebook("04", {"zzz": 3})
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "given",
    [{"epochs": "abc"}, {"epochs": 2.5}, {"epochs": True}, {"epochs": None}, {"lr": "fast"}, {"dataset": 7},
     {"seeds": 0}, {"quick": 1}, {"quick": "yes"}, {"limit": (1, 2)}],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_before_a_kernel_starts(series, no_kernel, given):
    write_notebook(series / "04_train.ipynb")
    with pytest.raises(ConfigError, match=f"parameter '{next(iter(given))}' of 04_train takes"):
        runner.run_notebook("04", given)


def test_importing_the_runner_and_refusing_a_typo_loads_no_heavy_library(tmp_path):
    path = write_notebook(tmp_path / "04_train.ipynb")
    code = f"""
import sys
from ucore.errors import ConfigError
from ucore.runner import run_notebook
try:
    run_notebook({str(path)!r}, {{"epoch": 1}})
except ConfigError:
    print(sorted({{"papermill", "nbformat", "nbconvert", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_a_kept_notebook_never_overwrites_it(tmp_path, no_kernel):
    path = write_notebook(tmp_path / "runs" / "a" / "a.ipynb")
    with pytest.raises(ConfigError, match="would overwrite it"):
        runner.run_notebook(path, out=tmp_path / "runs")
    assert path.exists()


def test_an_out_folder_that_is_a_file_is_one_sentence(tmp_path, no_kernel):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"Cannot write into .*runs"):
        runner.run_notebook(write_notebook(tmp_path / "a.ipynb"), out=tmp_path / "runs")


# --- a run that succeeds --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run where the registered python3 kernel is a trap: (result, facts from inside, progress text)."""
    folder = tmp_path_factory.mktemp("finished")
    trap = folder / "jupyter" / "kernels" / "python3"
    trap.mkdir(parents=True)
    (trap / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "trap", "language": "python"}))
    path = write_notebook(
        folder / "04_train.ipynb",
        "import json, os, sys\nfacts = [sys.executable, os.getcwd(), epochs, lr, dataset, seeds, limit]\n"
        "json.dump(facts, open('facts.json', 'w'))",
        "print('first state', end='')\nprint('\\rlast state')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "import ipywidgets\nipywidgets.IntSlider(description='slide')",
    )
    progress = (folder / "stderr").open("w+")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MPLBACKEND", "agg")
        patch.setattr(sys, "stderr", progress)
        given = {"epochs": 5, "lr": 1, "dataset": Path('a "quoted" \\ place'), "seeds": [2], "limit": 9}
        result = runner.run_notebook(path, given, out=folder / "runs {0} {x}")
    progress.seek(0)
    return result, json.loads((folder / "facts.json").read_text()), progress.read()


def test_the_kernel_is_this_python_in_the_current_folder_with_the_parameters(finished):
    result, facts, _ = finished
    folder = result.path.parents[2]
    assert facts == [sys.executable, str(folder), 5, 1, 'a "quoted" \\ place', [2], 9]
    assert result.path == folder / "runs {0} {x}" / "04_train" / "04_train.ipynb"
    assert result.seconds > 0


def test_the_executed_notebook_tells_how_it_was_made_without_machine_paths(finished):
    result, _, _ = finished
    notebook = nbformat.read(result.path, as_version=4)
    made = notebook.metadata["ucore"]
    assert made["version"] == ucore.__version__
    assert made["parameters"]["epochs"] == 5
    assert made["seconds"] == pytest.approx(result.seconds, abs=0.06)
    assert str(result.path.parents[2]) not in json.dumps(notebook.metadata)
    assert "last state" in outputs(result.path)
    assert "first state" not in outputs(result.path)


def test_progress_shows_the_section_and_what_the_kernel_prints(finished):
    _, _, progress = finished
    assert "04_train: Does it run?" in progress
    assert "04_train: Train" in progress
    assert "last state" in progress
    assert "100%" in progress


def test_the_html_is_self_contained(finished):
    result, _, _ = finished
    page = result.html.read_text("utf-8")
    assert re.search(r'<img[^>]+src="data:image/png;base64,', page)
    assert "last state" in page
    assert not re.findall(r"<script|<link|<iframe|@import|url\(['\"]?https?:", page)
    assert not re.findall(r"""(?:src|href|data)\s*=\s*["']?(?:https?:)?//[^"' ]*""", page)
    assert "IntSlider" not in re.sub(r"<[^>]+>", "", page.split("<body")[1]).replace("ipywidgets.IntSlider", "")


def test_pictures_keep_their_alternative_text_on_the_page(tmp_path):
    picture = Picture(figsize=(1, 1))
    picture.alt = 'A tile with "5" segments <b>'
    data, metadata = picture._repr_mimebundle_()
    output = new_output("display_data", data, metadata=metadata)
    plain = new_output("display_data", {"image/png": data["image/png"]})
    notebook = new_notebook(cells=[new_code_cell("", outputs=[output, plain])])
    runner._write_html(notebook, tmp_path / "page.html")
    page = BeautifulSoup((tmp_path / "page.html").read_text("utf-8"), "html.parser")
    told = [image["alt"] for image in page.select("img")]
    assert told == [picture.alt, "No description has been provided for this image"]
    assert page.body is not None and not page.body.select("b")


# --- runs that fail -------------------------------------------------------------------------------------------


def test_a_failed_cell_is_a_notebook_error_and_all_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_notebook(tmp_path / "04_train.ipynb", "print('be' + 'fore')", "x = 0\n1 / x", "print('af' + 'ter')")
    with pytest.raises(NotebookError) as caught:
        runner.run_notebook(path, progress=False)
    kept = Path("runs/notebooks/04_train/04_train.ipynb")
    assert str(caught.value) == (
        "04_train failed in cell In [3] (`x = 0`): ZeroDivisionError: division by zero. "
        f"The executed notebook is kept: {kept}"
    )
    assert not isinstance(caught.value, UserError)
    for text in (outputs(kept), kept.with_suffix(".html").read_text("utf-8")):
        assert "before" in text
        assert "ZeroDivisionError" in text
        assert "after" not in text.split("<body")[-1]


def test_a_user_error_in_a_cell_is_that_user_error(tmp_path):
    raising = "from ucore.errors import DataError\nraise DataError('No images in x. Unpack them there.')"
    path = write_notebook(tmp_path / "a.ipynb", raising)
    with pytest.raises(DataError) as caught:
        runner.run_notebook(path, out=tmp_path / "out", html=False, progress=False)
    assert str(caught.value) == "No images in x. Unpack them there."
    assert "Unpack them" in outputs(tmp_path / "out/a/a.ipynb")
    assert not (tmp_path / "out/a/a.html").exists()


@pytest.mark.parametrize(
    ("code", "timeout", "message", "fault"),
    [
        ("import os\nos._exit(1)", None, r"The kernel of a died in cell In \[2\] \(`import os`\)", "DeadKernelError"),
        ("import time\ntime.sleep(60)", 1, r"stopped in cell In \[2\] \(`import time`\) after 1 s", "TimeoutError"),
    ],
)
def test_a_dead_or_stuck_kernel_is_told_in_the_error_and_in_the_notebook(tmp_path, code, timeout, message, fault):
    path = write_notebook(tmp_path / "a.ipynb", code, "print('never')")
    with pytest.raises(NotebookError, match=message):
        runner.run_notebook(path, out=tmp_path / "out", html=False, progress=False, timeout=timeout)
    assert fault in outputs(tmp_path / "out/a/a.ipynb")


def test_a_kernel_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel_launcher.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(NotebookError, match="The kernel of a could not start"):
        runner.run_notebook(write_notebook(tmp_path / "a.ipynb"), out=tmp_path / "out", html=False, progress=False)


def test_ctrl_c_lets_the_cell_save_then_stops_the_kernel_and_keeps_the_notebook(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    saving = """import os, pathlib, time
pathlib.Path("pid.tmp").write_text(str(os.getpid()))
os.rename("pid.tmp", "pid")
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    pathlib.Path("saved").touch()
"""
    path = write_notebook(tmp_path / "a.ipynb", "print('be' + 'fore')", saving)

    def press_ctrl_c():
        while not Path("pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    deadline = time.monotonic() + 30
    # A shell starts background jobs with Ctrl-C ignored; the test must not depend on how it was started.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run_notebook(path, out="out", html=False, progress=False)
    assert Path("saved").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert "before" in outputs(Path("out/a/a.ipynb"))
    assert "KeyboardInterrupt" in outputs(Path("out/a/a.ipynb"))
