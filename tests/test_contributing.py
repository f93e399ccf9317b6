"""The examples of CONTRIBUTING run as they stand, and do what they say; the public API is what is written down."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import ucore

ROOT = Path(__file__).parents[1]
API = (ROOT / "tests" / "public_api.txt").read_text("utf-8").splitlines()


def example(word: str) -> dict[str, Any]:
    """The names that the one example of CONTRIBUTING holding `word` defines."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    names: dict[str, Any] = {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_reader_reads_and_is_found(tiny_rsicd, tmp_path, monkeypatch):
    from ucore import data
    from ucore.errors import DataError

    monkeypatch.setattr(data, "LAYOUTS", (*data.LAYOUTS, example("Layout(")["layout"]))
    (tmp_path / "a.jpg").write_bytes(next((tiny_rsicd / "images").iterdir()).read_bytes())
    (tmp_path / "pairs.tsv").write_text("a.jpg\ta lake\ttrain\n")
    manifest = data.read_dataset(tmp_path, split="train")
    assert manifest.texts[0] == ["a lake"] and manifest.name == tmp_path.name
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.jpg"):
        data.read_dataset(tmp_path)


def test_the_loss_is_one_more_part_of_a_step(tiny_rsicd, encoder_factory):
    from ucore.config import TrainConfig
    from ucore.data import read_dataset

    data = read_dataset(tiny_rsicd)
    config = TrainConfig.at("tiny", head_batch_size=8)
    trainer = example("spread_loss")["SpreadTrainer"](encoder_factory(), data.split("train"), data.split("val"), config)
    result = trainer.step()
    assert set(result.parts) >= {"spread"} and -0.1 < result.parts["spread"] < 0
    assert result.loss == pytest.approx(sum(result.parts.values()))


def test_the_baseline_is_a_value():
    from ucore.adapt_config import METHODS

    config = example("AdaptConfig.of")["adversary_and_moments"]
    assert (config.adversary, config.coral_weight, config.adversarial_weight) == ("dann", 1.0, 0.5)
    assert METHODS["dann"] == {"adversary": "dann"}  # the method it starts from stays as it is


def test_the_encoder_embeds(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    encoder = example("load_encoder")["encoder"]
    with encoder.evaluating():
        features = encoder.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.shape == (2, encoder.embed_dim)


def test_the_engine_finds_and_is_found_again(tmp_path, monkeypatch):
    import numpy as np
    from makers_index import CARD, DIM, make_features, make_rows

    from ucore import index
    from ucore.errors import ConfigError
    from ucore.filters import Filter

    monkeypatch.setattr(index, "ENGINES", dict(index.ENGINES))
    engine = example("GraphEngine")["GraphEngine"]
    index.GalleryIndex.create(tmp_path / "i", CARD, DIM, "graph").add(make_features(300), make_rows(300))
    again = index.GalleryIndex.open(tmp_path / "i")
    assert type(again._engine) is engine
    asked, spain = make_features(20, 5), Filter(domains=("spain",))
    for where in (None, spain):
        near, right = (again.search(asked, 5, where, exact=exact) for exact in (False, True))
        assert right.exact and not near.exact and near.allowed == right.allowed
        assert np.mean([len(set(a) & set(b)) for a, b in zip(near.positions, right.positions, strict=True)]) > 4.5
    assert set(again.rows(near.positions.ravel())["domain"]) == {"spain"}
    del index.ENGINES["graph"]
    with pytest.raises(ConfigError, match="made with the engine 'graph'"):
        index.GalleryIndex.open(tmp_path / "i")


# --- the public API -----------------------------------------------------------------------------------------------


def described(name: str) -> str:
    """A line of the list: the full name, and the names and defaults of its parameters; annotations may be refined."""
    module, _, path = name.removeprefix("ucore.").partition(".")
    thing: Any = import_module(f"ucore.{module}")
    for part in path.split("."):
        thing = getattr(thing, part)
    signature = inspect.signature(thing)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    plain = [p.replace(default=...) if isinstance(p.default, tuple) and len(p.default) > 3 else p for p in plain]
    return name + str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("line", API, ids=lambda line: line.partition("(")[0])
def test_the_public_api_stays_as_it_is_written_down(line):
    assert described(line.partition("(")[0]) == line


def test_the_list_is_sorted_and_names_nothing_private():
    names = [line.partition("(")[0] for line in API]
    assert names == sorted(set(names)) and len(names) > 40
    assert not any(part.startswith("_") for name in names for part in name.split("."))


def test_every_public_function_is_annotated():
    bare = []
    for path in sorted(Path(ucore.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                given = [
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                    node.args.vararg,
                    node.args.kwarg,
                ]
                lacking = [one.arg for one in given if one and not one.annotation and one.arg not in ("self", "cls")]
                bare += [f"{path.stem}.{node.name}"] * (bool(lacking) or node.returns is None)
    assert bare == []
