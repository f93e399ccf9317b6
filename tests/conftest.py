"""Shared by all tests: no network, no windows, one thread a worker, and what is slow to make is made once."""

import copy
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before torch, matplotlib and Hugging Face are first imported; commands started by tests inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers of two threads each would wait for each other

TINY_CLIP = "tiny-clip"
# Files that take a minute or more, longest first: begun last, they would leave one worker alone with them.
LONG = ("test_notebooks", "test_country_gap", "test_distributed", "test_train", "test_kills", "test_hostile_input",
        "test_parallel", "test_ends", "test_network", "test_captions", "test_adapt", "test_adapt_segments",
        "test_micro_sam", "test_cli", "test_simulate")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; browsers last, since Playwright leaves an event loop running, in which widgets behave
    otherwise."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (item.path.parent.name == "browser", places.get(item.path.stem, len(LONG))))


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Give back what training let glibc keep (`device.keep_freed_memory`): a worker runs the tests of many modules."""
    yield
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.mallopt(mmap_max, 65536)
        libc.malloc_trim(0)


@pytest.fixture(scope="session")
def tiny_rsicd(tmp_path_factory) -> Path:
    """A folder in the RSICD layout, 24 + 8 + 8 pictures of 64 pixels; to be read, not changed."""
    from makers import make_rsicd

    return make_rsicd(tmp_path_factory.mktemp("data") / "rsicd")


@pytest.fixture(scope="session")
def sides(tiny_rsicd, tmp_path_factory) -> tuple[Any, Any, Any]:
    """Of an adaptation: the part train of the source, and of another set 12 images for finetune and 8 for val."""
    from makers import make_rsicd

    from ucore.data import read_dataset

    other = read_dataset(make_rsicd(tmp_path_factory.mktemp("other") / "set", 12, 8, 0, seed=7))
    return read_dataset(tiny_rsicd, split="train"), other.split("train"), other.split("val")


@pytest.fixture(scope="session")
def encoder_factory() -> Callable[[], Any]:
    """A function that gives a fresh copy of the bundled encoder; the weights are read once."""
    import torch

    from ucore.model import load_encoder

    torch.manual_seed(0)
    original = load_encoder()
    return lambda: copy.deepcopy(original)


@pytest.fixture(scope="session")
def search_place(encoder_factory, tmp_path_factory) -> Any:
    """A `makers_search.Place`: 36 images of three countries, indexed with captions and segments; not to be changed."""
    from makers_search import make_search

    return make_search(tmp_path_factory.mktemp("search"), encoder_factory())


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """Name of a CLIP of one layer a tower, 32-pixel images and 16 dimensions, made known to open_clip."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    path = tmp_path_factory.mktemp("open_clip") / f"{TINY_CLIP}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return TINY_CLIP


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory) -> str:
    """Name of a CLIP whose vision tower is a small ResNet with BatchNorm, as RN50's, for pictures of 64 pixels."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    path = tmp_path_factory.mktemp("open_clip") / "tiny-resnet.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return "tiny-resnet"


@pytest.fixture(scope="session")
def tiny_clip_factory(tiny_clip) -> Callable[[], Any]:
    """A function that gives a fresh copy of it, its weights as drawn: for trainings that are compared to each other."""
    import torch

    from ucore.model import load_encoder

    torch.manual_seed(0)
    original = load_encoder(tiny_clip)
    return lambda: copy.deepcopy(original)
