"""Readers of what runs leave: reports, checkpoints, indexes, tables that grow, caches; and of words and addresses."""

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from judge import Target
from makers_index import CARD, DIM, make_features, make_rows
from makers_maps import make_places
from safetensors.numpy import save_file
from shapes import BYTES, JSON, JSON_LINES, LINES, NPY, NPZ, PARQUET, PNG, TENSORS, TORCH

from ucore.files import content_hash, write_json

# --- reports and what runs note --------------------------------------------------------------------------------------


def _reports(folder: Path) -> None:
    from targets_data import _stored_png

    from ucore.report import Report

    for name in ("04_train-a", "05_domain_gap-a"):
        report = Report(
            name, folder, dataset="RSICD", simulated=False, seed=0, command="ucore run 04", date="2026-01-01"
        )
        report.add("fine-tuned", "mR", 21.4, 19.8, 23.1, n=6564)
        report.add("zero-shot", "mR", 10.0)
        report.write()
        (folder / name / "curve.png").write_bytes(_stored_png())


def _use_reports(folder: Path) -> None:
    from ucore.differences import compare_runs
    from ucore.page import write_page
    from ucore.report import load_reports
    from ucore.tables import write_results

    reports = load_reports(folder)
    write_results(reports, folder)
    write_page(reports, folder, folder)
    json.dumps(compare_runs(folder / "04_train-a", folder).text())


def _validation(folder: Path) -> None:
    entry = {"label": "val", "metric": "mR", "value": 1.0, "low": None, "high": None, "n": 3}
    write_json(folder / "validation.json", {"metrics": [entry]})


def _use_validation(folder: Path) -> None:
    from ucore.differences import compare_runs

    compare_runs(folder / "validation.json", folder / "validation.json").text()


def _notes(folder: Path) -> None:
    write_json(folder / "run.json", {"key": "k", "seconds": 1.5, "files": {str(folder / "sums.json"): "x"}})
    write_json(folder / "sums.json", {"a.png": [1, 2, "h"]})
    write_json(folder / "gap.json", {"source": "a", "ranks": [[[1, 2], [1, 2]], [[1, 2], [1, 3]]]})
    write_json(folder / "arm.json", {"seconds": 1, "image_to_text": [1, 2], "text_to_image": [2, 1]})
    write_json(folder / ".unpacked.json", {"archive": "a.zip", "complete": True})
    write_json(folder / "part.json", [{"sample_id": "a"}])
    write_json(folder / "sureness.json", {"slope": 1.0, "own": 0.0, "offset": 0.0, "queries": 9, "hits": 9,
                                          "right": 0.5, "error": 0.1})  # fmt: skip
    write_json(folder / "dataset.json", {"settings": {"a": 1}, "complete": True})
    write_json(folder / "build.json", {"a": 1})


def _use_notes(folder: Path) -> None:
    """All of these can be made again: none of them stops a run, but for three that belong to something larger."""
    from ucore import ablations, gap
    from ucore.archives import read_stamp
    from ucore.index_flat import FlatEngine
    from ucore.origin import _remembered
    from ucore.reproduce import finished
    from ucore.simulate import _read_part
    from ucore.sureness import read_sureness

    finished(folder, "k")
    _remembered(folder / "sums.json")
    tests: Any = [SimpleNamespace(texts=[[0, 0]], __len__=None)] * 0
    gap._read(folder / "gap.json", tests)
    run = ablations._read(folder / "arm.json")
    assert run is None or run.seconds + run.ranks[0].mean() > -1e18
    read_stamp(folder).get("complete")
    _read_part(folder / "part.json", 1)
    engine: Any = SimpleNamespace(place=folder)
    index: Any = SimpleNamespace(note=lambda name: FlatEngine.note(engine, name), place=folder)
    sure = read_sureness(index)
    assert sure is None or 0 <= float(sure(np.zeros(3)).max()) <= 1


def _claims(folder: Path) -> None:
    from ucore.simulated_set import SimulationConfig, settings_of

    config = SimulationConfig(tiles=4)
    write_json(folder / "set" / "dataset.json", {"settings": settings_of(config), "complete": True})
    (folder / "set" / "manifest.parquet").write_text("")
    write_json(folder / "build" / "settings.json", {"a": 1})
    (folder / "build" / "images").mkdir()


def _use_claims(folder: Path) -> None:
    from ucore import build
    from ucore.simulated_set import SimulationConfig, dataset_credit, is_complete

    assert dataset_credit(folder / "set") in ("", "© OpenStreetMap contributors, ODbL")
    is_complete(folder / "set", SimulationConfig(tiles=4))
    if os.path.lexists(claim := folder / "build" / "settings.json"):  # whole files may be taken away, too
        claim.rename(folder / "build" / build.SETTINGS_FILE)
    build._claim(folder / "build", {"a": 1})


def _split(folder: Path) -> None:
    from ucore.splits import save_split

    save_split(make_places(folder, 2, 16), folder / "split.json")


@cache
def _loaded(path: Path) -> Any:
    """Read once: this manifest is not what is damaged."""
    from ucore.manifest import Manifest

    return Manifest.load(path)


def _use_split(folder: Path) -> None:
    from ucore.splits import load_split, samples_of, split_report

    manifest = _loaded(folder / "manifest.parquet")
    split_report(load_split(manifest, folder / "split.json"), images=False)
    samples_of(folder / "split.json")


def _notebook(folder: Path) -> None:
    source = ["seed = 0  # of all\n", "names = ['a', 'b']\n", 'scale = "tiny"  # or full\n']
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# What is it?\n"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source, "outputs": []},
        {"cell_type": "code", "metadata": {}, "source": "import ucore.files\n", "outputs": []},
    ]
    write_json(folder / "10_a.ipynb", {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def _use_notebook(folder: Path) -> None:
    from ucore.notebooks import checked_parameters, code_cells, notebook_help

    path = folder / "10_a.ipynb"
    notebook_help(path)
    checked_parameters(path, {})
    code_cells(path)


def _page(folder: Path) -> None:
    (folder / "README.md").write_text("# A\n<!-- BEGIN table -->\nold\n<!-- END table -->\nend\n")
    (folder / "prompt.txt").write_text("Describe it. It holds {tags}.\n--- without tags ---\nDescribe it.\n")


def _use_page(folder: Path) -> None:
    from ucore.prompts import load_prompt
    from ucore.tables import update_marked_section

    update_marked_section(folder / "README.md", "table", "new")
    load_prompt(str(folder / "prompt.txt")).fill(["building=house"])


# --- weights ---------------------------------------------------------------------------------------------------------

NAMES = ("tower.weight", "tower.bias")


def _weights(folder: Path) -> None:
    state = {"tower.weight": torch.arange(6.0).view(2, 3), "tower.bias": torch.tensor([1.0, -1.0])}
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pt")
    save_file({name: value.numpy() for name, value in state.items()}, folder / "a.safetensors")
    torch.save({**state, "more": SimpleNamespace()}, folder / "code.pt")


def _use_weights(folder: Path) -> None:
    from ucore.errors import CheckpointError
    from ucore.weights import fill, read_weights

    try:
        read_weights(folder / "code.pt")
    except CheckpointError as error:
        if "pickled code" not in str(error):
            raise
    for name in ("a.pt", "a.safetensors"):
        model = torch.nn.ModuleDict({"tower": torch.nn.Linear(3, 2)})
        fill(model, read_weights(folder / name), str(folder / name))
        assert len(model["tower"](torch.zeros(1, 3))) == 1


def _checkpoint(folder: Path) -> None:
    import open_clip

    from ucore.checkpoint import save_encoder, save_state
    from ucore.checkpoint_files import save_bank
    from ucore.config import TrainConfig
    from ucore.hubness import Bank
    from ucore.model import load_encoder

    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1}
    card = folder.parent / "fuzz-clip.json"
    card.write_text(json.dumps({"embed_dim": 4, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(card)
    card.unlink()
    encoder = load_encoder("fuzz-clip")
    save_encoder(folder, encoder, encoder.state_dict(), TrainConfig.at("tiny", precision="float32"), {"mR": 1.0})
    save_bank(folder, Bank(make_features(3, 0, 4), make_features(5, 1, 4)))
    save_state(
        folder,
        {"config": {"seed": 0}, "made_of": {"encoder": "fuzz-clip"}, "step_count": 3, "phase": None, "encoder": {}},
    )


@cache
def _tokenizer(name: str, **settings: Any) -> Any:
    """open_clip's own, made once: it reads nothing of a checkpoint, and takes longer than all that does."""
    from open_clip.factory import get_tokenizer

    return get_tokenizer(name, **settings)


def _use_checkpoint(folder: Path) -> None:
    from ucore.checkpoint import load_bank, load_checkpoint, load_state

    load_state(folder)
    bank = load_bank(folder)
    assert bank is None or (bank.images @ bank.texts.T).shape == (len(bank.images), len(bank.texts))
    with patch("open_clip.get_tokenizer", _tokenizer):
        load_checkpoint(folder)


def _use_tower(folder: Path) -> None:
    """The text tower without torch, of a file that has its names and tiny shapes."""
    from ucore.bundled_text import NumpyText
    from ucore.late import _pool_weights

    _pool_weights(folder / "model.safetensors")
    assert NumpyText(folder / "model.safetensors").embed(["a house"]).shape[0] == 1


def _tower(folder: Path) -> None:
    from ucore.bundled_text import TEXT_LEVELS

    rng = np.random.default_rng(0)
    width, wide, head = 12, 24, 4

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    names = {"embeddings.word_embeddings.weight": array(30522, width),
             "embeddings.position_embeddings.weight": array(512, width),
             "embeddings.token_type_embeddings.weight": array(2, width),
             "embeddings.LayerNorm.weight": array(width), "embeddings.LayerNorm.bias": array(width)}  # fmt: skip
    for layer in range(max(TEXT_LEVELS)):
        shapes = {"attention.self.query": (width, width), "attention.self.key": (width, width),
                  "attention.self.value": (width, width), "attention.output.dense": (width, width),
                  "attention.output.LayerNorm": (width,), "intermediate.dense": (wide, width),
                  "output.dense": (width, wide), "output.LayerNorm": (width,)}  # fmt: skip
        for name, shape in shapes.items():
            names[f"encoder.layer.{layer}.{name}.weight"] = array(*shape)
            names[f"encoder.layer.{layer}.{name}.bias"] = array(shape[0])
    tower = {f"clip.text.transformer.{name}": value for name, value in names.items()}
    many = width * len(TEXT_LEVELS)
    heads = {"mean": array(many), "scale": array(many)}
    for name, shape in {"expand": (8, many), "contract": (head, 8), "skip": (head, many)}.items():
        heads |= {f"{name}.weight": array(*shape), f"{name}.bias": array(shape[0])}
    save_file({**tower, **{f"text_head.{name}": value for name, value in heads.items()}}, folder / "model.safetensors")


# --- tables that grow, and caches -------------------------------------------------------------------------------------


def _segments(folder: Path) -> None:
    from ucore.masks import Segments
    from ucore.segment_store import SegmentStore, row_of

    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4], masks[1, 2:5, 3:] = True, True
    store = SegmentStore(folder / "s", {"generator": "grid"})
    with store.parts.writing():
        store.parts.append([row_of(f"k{n}", Segments.from_masks(masks), 0.1) for n in range(2)])
        store.parts.quarantine("k9", "c", "damaged")
        store.note({"a": "k0", "b": "k1", "c": "k9"})
    features = store.feature_store({"k": 2})
    with features.writing():
        features.append([{"key": "k0", "rows": [0, 1], "features": np.zeros(8, np.float16).tobytes()}])


def _use_segments(folder: Path) -> None:
    from ucore.segment_store import SegmentStore

    store = SegmentStore(folder / "s")
    for _, segments in store:
        assert segments.masks().shape == (len(segments), *segments.size)
        assert 0 <= segments.covered <= 1 and len(segments.areas) == len(segments) and segments.boxes is not None
    json.dumps(store.summary())
    store.feature_settings()
    if {"k": 2} in store.feature_settings():
        store.feature_store({"k": 2}).table()
    store.quarantined()
    with store.parts.writing():
        store.parts.done()


def _caches(folder: Path) -> None:
    np.save(folder / "features.npy", np.ones((2, 3), np.float32))
    np.savez_compressed(folder / "labels.npz", **{"000000": np.ones((1, 4, 4), np.uint16)})
    np.save(folder / "checked.npy", np.arange(5, dtype=np.uint64))


def _use_caches(folder: Path) -> None:
    """Caches are made again, whatever is wrong with them."""
    from ucore.checked import _known
    from ucore.features import _load_array
    from ucore.micro_sam_data import _kept_labels

    found = _load_array(folder / "features.npy", (2, 3))
    assert found is None or np.isfinite(found.sum()) in (True, False)
    _kept_labels(folder / "labels.npz", [np.zeros((4, 4, 3), np.uint8)])
    assert _known(folder / "checked.npy").dtype == np.uint64


def _states(folder: Path) -> None:
    torch.save({"key": "k", "log": [], "best": None, "trainer": {"step": 3, "model": {}, "optimizer": {}}},
               folder / "state.pt")  # fmt: skip


def _use_states(folder: Path) -> None:
    from ucore.weights import read_state, resuming

    saved = read_state(folder / "state.pt", "remove it to begin anew", ("key", "trainer"))
    with resuming(folder / "state.pt", "remove it to begin anew"):
        torch.nn.Identity().load_state_dict(saved["trainer"]["model"])
        int(saved["trainer"]["step"])


# --- indexes ---------------------------------------------------------------------------------------------------------


def _index(folder: Path, engine: str = "flat") -> None:
    from ucore.index import GalleryIndex

    index = GalleryIndex.create(folder / "i", {**CARD, "temperature": 0.05}, DIM, engine)
    index.add(make_features(12), make_rows(12).assign(image="a.png"))
    index.delete(["i3"])
    if engine == "flat":
        from ucore import index_flat

        engine_of: index_flat.FlatEngine = index._engine  # type: ignore[assignment]
        kept, index_flat.FROM = index_flat.FROM, 4
        index.compact()
        index_flat.FROM = kept
        index.delete(["i5"])
        assert engine_of.manifest["sketch"] and engine_of.manifest["gone"]


def _use_index(folder: Path) -> None:
    from ucore import sketch

    with patch.object(sketch, "WORTH", 0):  # so that it is asked
        _ask_index(folder)


def _ask_index(folder: Path) -> None:
    from ucore.filters import Filter
    from ucore.index import GalleryIndex

    index = GalleryIndex.open(folder / "i")
    index.verify()
    query = make_features(2, 9, index.dim)
    for where in (None, Filter(domains=("finland",)), Filter(tags=("building",)), Filter(box=(-180, -90, 180, 90))):
        for exact in (True, False):
            hits = index.search(query, 3, where, exact=exact, bias=index.has_bias)
    found = hits.positions[hits.positions >= 0]
    index.rows(found)
    index.features(found)
    for row in found.tolist():
        index.image_path(int(row))


def _seal(folder: Path) -> None:
    """Sizes and checksums as an attacker writes them."""
    from ucore.index_files import crc_of

    path = folder / "i" / "index.json"
    manifest = json.loads(path.read_text())
    for entry in [*manifest["parts"], manifest["gone"], manifest["sketch"]["axes"]]:
        file = path.parent / entry["name"]
        entry |= {"bytes": file.stat().st_size, "crc": crc_of(file)}
    grown, sketch = manifest["vectors"], manifest["sketch"]
    manifest["rows"] = (path.parent / grown["name"]).stat().st_size // (4 * manifest["width"])
    for entry, width in ((grown, 4 * manifest["width"]), (sketch["codes"], sketch["size"])):
        entry["chunks"] = [[manifest["rows"], crc_of(path.parent / entry["name"], 0, manifest["rows"] * width)]]
    manifest.pop("checksum", None)
    write_json(path, {**manifest, "checksum": content_hash(manifest)})


def _seal_only(folder: Path) -> None:
    path = folder / "i" / "index.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum", None)
    path.write_text(json.dumps({**manifest, "checksum": content_hash(manifest)}))


# --- words and addresses ----------------------------------------------------------------------------------------------


def _words(folder: Path) -> None:
    lines = ["24.9,60.1,25.0,60.2", "seed=1", "seeds=[0, 1]", 'out="runs/a"', "lr=1e-3", "120", "micro", "60.1,24.9"]
    lines += ["http://localhost:1/v1:llava:7b", "https://host.example/{z}/{x}/{y}.png", "Wed, 21 Oct 2026 07:28:00 GMT"]
    (folder / "words.txt").write_text("\n".join(lines))


def _use_words(folder: Path) -> None:
    """Every line as each thing that may be typed; one that is refused does not keep the others from being read."""
    from ucore.cli_search import BOX, PLACE, _filter, _numbers
    from ucore.endpoint import parse_address
    from ucore.errors import UserError
    from ucore.notebooks import find_notebook, parse_parameters
    from ucore.osm import parse_bounds
    from ucore.prompts import load_prompt, plain_text
    from ucore.queries import checked_query
    from ucore.series import dataset_for
    from ucore.servers import TileServer, retry_after

    rows = make_rows(20)
    try:
        lines = (folder / "words.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    for line in lines:
        for read in (
            lambda text: parse_bounds(text),
            lambda text: parse_parameters([text]),
            lambda text: parse_address(text),
            lambda text: TileServer(text, 17, "somebody"),
            lambda text: retry_after(text) >= 0,
            lambda text: _numbers("--near", text, PLACE),
            lambda text: _filter(None, None, text, None, [text], [text], [text]).mask(rows),
            lambda text: _filter(text, 3.0, None, None, [], [], []).mask(rows),
            lambda text: _numbers("--box", text, BOX),
            lambda text: checked_query(text),
            lambda text: find_notebook(text),
            lambda text: load_prompt(text),
            lambda text: plain_text(text, 80).isprintable(),
            lambda text: dataset_for("rsicd", text or "x"),
        ):
            try:
                read(line)
            except UserError as error:
                told = " ".join(str(error).split())
                assert told and told.isprintable() and len(told) < 3000, told[:200]


def _answers(folder: Path) -> None:
    message = {"role": "assistant", "content": "A house."}
    write_json(folder / "chat.json", {"choices": [{"message": message, "finish_reason": "stop"}]})
    write_json(folder / "models.json", {"data": [{"id": "llava"}]})
    write_json(folder / "said.json", {"like": "s1", "why": "i1", "box": [1, 2, 3, 4], "polygon": [[0, 0], [1, 1]]})


def _use_answers(folder: Path) -> None:
    from ucore.endpoint import _NoCaptionError, _served, _text_of, _TryAgainError

    data = [path.read_bytes() if path.is_file() else b"" for path in (folder / "chat.json", folder / "models.json")]
    try:
        _text_of(data[0]).encode()
    except (_NoCaptionError, _TryAgainError) as error:
        told = str(error)
        if not told.isprintable() or len(told) > 300:
            raise ValueError(told) from None
    assert all(isinstance(name, str) for name in _served(data[1]))


TARGETS = [
    Target("reports", ("report.load_report", "differences._load_one", "page._picture", "page._map"), _reports,
           _use_reports, {"*/metrics.json": JSON, "*/*.png": PNG}, 120),
    Target("validation", ("differences._load_one",), _validation, _use_validation, {"*.json": JSON}, 200),
    Target("notes of runs", ("reproduce._record", "files.parse_json", "files.read_json",
           "gap._read", "ablations._read", "index_flat.note",
           "archives.read_stamp", "origin._remembered", "simulate._read_part", "sureness.read_sureness"),
           _notes, _use_notes, {"*.json": JSON, ".u*.json": JSON}, 250),
    Target("claims on folders", ("simulated_set.is_complete", "simulated_set.dataset_credit", "build._claim"),
           _claims, _use_claims, {"*/*.json": JSON}, 200),
    Target("split", ("splits._read_split",), _split, _use_split, {"*.json": JSON}, 100),
    Target("notebook", ("notebooks.notebook_cells", "notebooks.notebook_parameters"), _notebook, _use_notebook,
           {"*.ipynb": JSON}, 200),
    Target("prompt and page", ("prompts.load_prompt", "tables.update_marked_section"), _page, _use_page,
           {"*.md": LINES, "*.txt": LINES}, 200),
    Target("weights", ("weights.read_weights", "weights._holds_code"), _weights, _use_weights,
           {"*.pt": TORCH, "*.safetensors": TENSORS}, 300),
    Target("checkpoint", ("checkpoint_files.read_card", "checkpoint_files.load_bank", "weights.read_state"),
           _checkpoint, _use_checkpoint, {"encoder.json": JSON, "bank.safetensors": TENSORS, "state.pt": TORCH}, 100),
    Target("text tower", ("bundled_text.__init__", "late._pool_weights"), _tower, _use_tower,
           {"*.safetensors": TENSORS}, 100),
    Target("training state", ("weights.read_state",), _states, _use_states, {"*.pt": TORCH}, 200),
    Target("segment store", ("store._read", "store._read_settings", "store._quarantine", "segment_store.__init__",
           "segment_store.feature_settings", "masks.masks", "masks._covers", "masks._runs"), _segments, _use_segments,
           {"s/*.parquet": PARQUET, "s/*.json": JSON, "s/*.jsonl": JSON_LINES, "s-*/*.parquet": PARQUET}, 200),
    Target("tensor caches", ("features.stored_array", "micro_sam_data._kept_labels", "checked._known"), _caches,
           _use_caches, {"*.npy": NPY, "*.npz": NPZ}, 200),
    Target("index", ("index_files.read_manifest", "index_files.map_table", "index_files.map_vectors",
           "index_files.load_arrays", "index.engine_at", "index_files.crc_of", "index_version._checked_sketch"), _index,
           _use_index, {"i/*.arrow": BYTES, "i/*.npy": NPY, "i/*.npz": NPZ, "i/*.f32": BYTES, "i/*.u8": BYTES}, 200,
           seal=_seal),
    Target("index manifest", ("index_files.read_manifest",), _index, _use_index, {"i/index.json": JSON}, 200,
           seal=_seal_only),
    Target("index lance", ("index_lance.refresh", "index_lance.__init__", "lance_files._noted"),
           lambda folder: _index(folder, "lance"), _use_index, {"i/**/*.*": BYTES}, 100, limited=False, room=2**28),
    Target("words", ("osm.parse_bounds", "notebooks.parse_parameters", "notebooks.find_notebook", "servers.retry_after",
           "endpoint.parse_address", "cli_search._numbers", "filters.__post_init__", "filters.mask",
           "queries.checked_query", "prompts.load_prompt", "series.dataset_for"), _words, _use_words,
           {"*.txt": LINES}, 200, named=False),
    Target("endpoint answers", ("endpoint._text_of", "endpoint._served"), _answers, _use_answers, {"*.json": JSON},
           200),
]  # fmt: skip
