"""The files around the package agree with each other: environments, lock, Makefile, notebooks, README."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import tokenize
import tomllib
from io import StringIO
from pathlib import Path
from typing import Any

import audit
import pytest
import yaml
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TARGETS = (
    *("setup", "reproduce", "test", "fuzz", "faults", "audit", "check", "lab", "app", "bench", "new-notebook"),
    *("clean", "help"),
)
# What the series is about; users meet these names, so that they are dependencies by decision.
CHOSEN = (
    *("jupyterlab", "papermill", "torch", "open_clip_torch", "segment-anything"),
    *("transformers", "matplotlib", "folium", "ipywidgets"),
)


# --- environments -------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    extras = [line for lines in PROJECT.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]


def locked() -> dict[str, tuple[str, int]]:
    """name -> (version, number of hashes) of requirements.lock."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n?", "", LOCK)):
        pin = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", block)
        assert pin, f"not a pinned package: {block[:60]!r}"
        found[canonicalize_name(pin[1])] = (pin[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


def test_chosen_packages_are_dependencies():
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {canonicalize_name(name) for name in CHOSEN} <= names


def test_every_dependency_has_a_bound_and_every_pin_a_reason():
    assert [str(requirement) for requirement in requirements() if not requirement.specifier] == []
    for line in (ROOT / "pyproject.toml").read_text("utf-8").splitlines():
        if re.match(r'\s+"[A-Za-z0-9_-]+==', line):
            assert re.search(r"#\s*\w", line), line


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_the_lock_satisfies(requirement):
    version, _ = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_everything_locked_has_hashes_and_no_address():
    assert len(locked()) > 100
    assert [name for name, (_, hashes) in locked().items() if hashes == 0] == []
    assert re.search(r"(?m)^\s*(--(extra-)?index-url|--find-links|-[eif]\s|-r\s)|://| @ ", _uncommented(LOCK)) is None


def _uncommented(text: str) -> str:
    return re.sub(r"(?m)#.*$", "", text)


def test_the_conda_environment_installs_this_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    # Packages come from pyproject alone, so that they are written down once.
    assert sorted(re.split(r"[<>=]", line)[0] for line in conda) == ["pip", "python"]
    assert pip == [["-e ."]]
    (python,) = (line for line in conda if line.startswith("python"))
    assert Requirement(python).specifier == Requirement(f"python{PROJECT['requires-python']}").specifier


# --- Makefile and README ------------------------------------------------------------------------------------


def make(*arguments: str) -> str:
    if not shutil.which("make"):
        pytest.skip("NOT TESTED: there is no make on this machine")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not within `make test`
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_alone_lists_the_targets():
    listed = [line.split()[0] for line in make().splitlines()]
    assert sorted(listed) == sorted(TARGETS)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], 2),
        ([{"name": "a", "skip_reason": "unknown"}, {"name": "b", "version": "1", "vulns": []}], 2),
        ([{"name": "b", "version": "1", "vulns": []}], 0),
        ([{"name": "b", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}], 1),
    ],
)
def test_an_audit_that_was_told_nothing_finds_nothing_clean(found, status, capsys):
    assert audit.told(found) == status
    printed = capsys.readouterr()
    assert ("b 1: X-1, mended in 2" in printed.out) == (status == 1)
    assert ("not checked: a" in printed.err) == ("skip_reason" in str(found))


def test_every_target_exists():
    phony = re.search(r"(?m)^\.PHONY:(.*)$", (ROOT / "Makefile").read_text("utf-8"))
    assert phony
    assert sorted(phony[1].split()) == sorted(TARGETS)
    for target in TARGETS:
        make("-n", target)


def test_the_readme_shows_the_two_commands():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make reproduce" in readme
    assert "make test" in readme


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "LOG.md"])
def test_relative_links_lead_somewhere(name):
    text = (ROOT / name).read_text("utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (ROOT / name).parent.joinpath(target).exists()] == []


def test_the_licence_is_the_one_named():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


# --- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "ucore").glob("*.py")), ids=lambda path: path.name)
def test_a_module_can_be_read_in_one_sitting(path):
    assert len(path.read_text("utf-8").splitlines()) <= 330


def test_a_new_notebook_passes_the_tests_of_notebooks_and_runs(tiny_rsicd, tmp_path, monkeypatch):
    from ucore.errors import ConfigError
    from ucore.new_notebook import new_notebook
    from ucore.report import load_report

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "ucore").mkdir()
    shutil.copy(ROOT / "ucore" / "series.py", tmp_path / "ucore" / "series.py")
    path = new_notebook("10_first_seasons", tmp_path)
    of_notebooks = [name for name in vars(TestNotebook) if name.startswith("test_")]
    assert len(of_notebooks) > 3
    for name in of_notebooks:
        getattr(TestNotebook(), name)(path)
    new_notebook("06_between", tmp_path)
    text = (tmp_path / "ucore" / "series.py").read_text("utf-8")
    assert 'Chapter("10_first_seasons"),\n    Chapter("09_results"' in text  # the page of results stays last
    assert text.index('"05_domain_gap"') < text.index('"06_between"') < text.index('"07_ablations"')
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in code_cells(path):
        exec(source, names)
        names |= {"dataset": str(tiny_rsicd), "out": "runs"}
    assert load_report("reports/10_first_seasons-tiny-rsicd/metrics.json")["metrics"][0]["value"] == 32
    for wrong in ("", "seasons", "1_x", "10_Seasons", "../10_x", "10_other"):
        with pytest.raises(ConfigError, match=r"cannot name a notebook|is taken"):
            new_notebook(wrong, tmp_path)


# --- notebooks ----------------------------------------------------------------------------------------------


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["cells"]


def code_cells(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def test_the_series_has_its_notebooks():
    assert {"00_setup_check", "04_train", "09_results"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_holds_no_output(self, path):
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
        assert "widgets" not in json.loads(path.read_text("utf-8"))["metadata"]

    def test_begins_with_a_question(self, path):
        first = cells(path)[0]
        title = "".join(first["source"]).splitlines()[0]
        assert first["cell_type"] == "markdown"
        assert title.startswith("# ")
        assert title.endswith("?")

    def test_shows_calls_and_keeps_the_work_in_the_package(self, path):
        for source in code_cells(path):
            assert len(source.strip().splitlines()) <= 14, source
            assert re.search(r"(?m)^\s*class ", source) is None, source

    def test_a_report_knows_its_data(self, path):
        made = [source for source in code_cells(path) if "Report(" in source]
        assert [source for source in made if "data=" not in source] == []

    def test_explains_every_parameter(self, path):
        tagged = ["".join(c["source"]) for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1
        statements = ast.parse(tagged[0]).body
        comments = {
            token.start[0]
            for token in tokenize.generate_tokens(StringIO(tagged[0]).readline)
            if token.type == tokenize.COMMENT and len(token.string.strip("# ")) > 3
        }
        assert statements
        assert all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in statements)
        assert [ast.unparse(s) for s in statements if s.lineno not in comments or s.lineno != s.end_lineno] == []


def test_kernels_of_the_lab_begin_where_every_other_command_does():
    command = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = next(shlex.split(line) for line in command.splitlines() if "jupyter lab" in line)
    (given,) = (word.partition("=")[2] for word in words if word.startswith("--MappingKernelManager.root_dir="))
    assert words[-1] == "notebooks"  # the files that are shown
    manager = AsyncMappingKernelManager(root_dir=given)
    assert Path(manager.cwd_for_path("04_train.ipynb")).samefile(ROOT)
