"""The direction in which the modules depend on each other, and what importing the package costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ucore

PACKAGE = Path(ucore.__file__).parent
ORDER = [
    *(
        "errors",
        "signals",
        "spans",
        "files",
        "config",
        "images",
        "checked",
        "origin",
        "notebooks",
        "masks",
        "store",
        "workers",
        "processes",
        "cluster",
        "parallel",
    ),
    *("manifest", "osm", "geo", "kinds", "compose"),
    *("duplicates", "blocks", "splits", "tiles", "servers", "imagery", "build"),
    *("countries", "site", "facilities", "fillers", "city", "osm_city"),
    *("textures", "canvas", "painters_built", "painters", "render", "describe", "simulated_set", "simulate"),
    *(
        "archives",
        "readers",
        "rsicd",
        "urbancross",
        "skyscript",
        "geotiles",
        "shards",
        "sharding",
        "data",
        "inspection",
    ),
    *(
        "convolution",
        "bundled_text",
        "bundled",
        "weights",
        "device",
        "distributed",
        "gradients",
        "heads",
        "alignment",
        "model",
        "features",
        "micro_sam",
        "sam",
        "mask_decoder",
        "mask_filters",
        "mask_generator",
        "mosaic",
        "closer",
        "looker",
        "classical",
        "selection",
        "crops",
        "segment_store",
        "crop_features",
        "segments",
        "micro_sam_data",
        "micro_sam_loss",
        "click_scores",
        "micro_sam_train",
        "prompts",
        "micro_captioner",
        "endpoint",
        "pretrained",
        "captioner",
        "things",
        "grounding",
        "cleaning",
        "refining",
        "asking",
        "likeness",
        "captions",
        "micro_captioner_data",
        "micro_captioner_train",
        "losses",
        "transfer",
        "adversary",
        "curriculum",
        "pseudo",
        "test_time",
        "adapt_config",
        "hubness",
        "evaluate",
        "ties",
        "fusion",
        "checkpoint_files",
        "checkpoint",
        "comparison",
        "report",
    ),
    *(
        "places",
        "columns",
        "filters",
        "filter_sql",
        "nearest",
        "sketch",
        "index_rows",
        "index_files",
        "index_engine",
        "index_version",
        "index_flat",
        "lance_files",
        "lance_tables",
        "index_lance",
        "index",
    ),
    *("sureness", "queries", "answers", "late", "embedding"),
    *("pairs", "neighbours"),
    *(
        "progress",
        "guards",
        "phases",
        "tower_phase",
        "train",
        "adapt_phase",
        "adapt",
        "retrieve",
        "index_evaluation",
        "tasks",
        "picture",
        "visualize",
        "transfer_figures",
        "gallery",
        "overlays",
        "caption_figures",
    ),
    *(
        "basemap",
        "maps",
        "atlas",
        "live",
        "probes",
        "adapt_probes",
        "query_figures",
        "explain",
        "found_cards",
        "found_figures",
        "heat",
        "search_box",
        "adaptation_figures",
        "curriculum_figures",
        "app",
        "widgets",
        "adaptation_stepper",
        "explorer",
        "segment_explorer",
        "caption_explorer",
    ),
    *("ablations", "gap", "crossing", "runner", "series", "reproduce"),
    *("tables", "freshness", "differences", "page_style", "page", "new_notebook"),
    *("cli_data", "cli_augment", "cli_adapt", "cli_index", "cli_search", "cli_reproduce", "adapt_ablations", "cli"),
]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
HEAVY = ("torch", "open_clip", "transformers", "timm", "geopandas", "pandas", "matplotlib", "papermill")


class Imports(ast.NodeVisitor):
    """Names of the package's modules that a source imports anywhere, but for the types of annotations."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
        for statement in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            package, _, module = alias.name.partition(".")
            if package == "ucore" and module:
                self.found.add(module.split(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:  # from . import files; from .files import atomic_path
            module = f"ucore.{module}".rstrip(".")
        if module == "ucore":
            self.found |= {alias.name for alias in node.names}
        elif module.startswith("ucore."):
            self.found.add(module.split(".")[1])


def imports(source: str) -> set[str]:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.found


def test_imports_are_seen_wherever_they_stand():
    source = """
import ucore, ucore.errors
import ucore.model as m
from ucore import bundled, files
from ucore.config import TrainConfig
from .losses import clip_loss
from . import data
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ucore.train import Trainer
else:
    import ucore.retrieve
def late():
    if True:
        from ucore.report import Report
class Holder:
    try:
        import ucore.geo
    except ImportError:
        pass
"""
    seen = {"errors", "model", "bundled", "files", "config", "losses", "data", "retrieve", "report", "geo"}
    assert imports(source) == seen


def test_every_module_has_a_place_in_the_order():
    assert len(set(ORDER)) == len(ORDER)
    assert set(MODULES) <= set(ORDER)
    assert len(MODULES) > 15


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module):
    above = set(ORDER[: ORDER.index(module)]) | {"__version__", "STARTED"}
    assert imports((PACKAGE / f"{module}.py").read_text("utf-8")) - above == set()


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after `code` ran in a fresh Python."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


HELP = """
import contextlib, sys
import ucore.cli
sys.argv = ["ucore", "--help"]
with contextlib.suppress(SystemExit):
    ucore.cli.main()
"""


@pytest.mark.parametrize(
    "code", ["import ucore, ucore.errors, ucore.config, ucore.files", HELP], ids=["import", "help"]
)
def test_no_heavy_library_is_loaded_before_it_is_needed(code):
    loaded = loaded_by(code)
    assert "ucore" in loaded
    assert loaded & set(HEAVY) == set()


def test_the_check_above_would_see_a_heavy_library():
    assert "pandas" in loaded_by("import pandas")
