"""The text tower in numpy gives what torch gives."""

import numpy as np
import pytest
import torch

from ucore.bundled_text import NumpyText, gelu
from ucore.errors import CheckpointError
from ucore.features import embed_texts
from ucore.weights import write_weights

TEXTS = (
    "tennis courts beside a school",
    "a",
    "Caf\u00e9 &amp; na\u00efve  sch\u00f6n\u2019s \u65e5\u672c, half-timbered (2.5 m)",
    "",
    "many houses with red roofs . " * 60,
)


@pytest.fixture(scope="module")
def encoder(encoder_factory):
    made = encoder_factory()
    made.choose_precision("float32")
    made.text_head.standardise(torch.randn(50, made.text_width, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.fixture(scope="module")
def light(encoder, tmp_path_factory) -> NumpyText:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_weights(path, encoder.state_dict())
    return NumpyText(path)


@pytest.mark.filterwarnings("ignore:1 of 5 texts")
def test_features_are_those_of_torch(encoder, light):
    expected = embed_texts(encoder, TEXTS, progress=False)
    assert light.embed(TEXTS) == pytest.approx(expected, abs=2e-6)
    assert light.embed(TEXTS).dtype == np.float32


def test_a_text_fits_or_does_not(encoder, light):
    assert [light.fits(text) for text in TEXTS] == [True, True, True, True, False]
    assert light.fits("house " * 126) and not light.fits("house " * 127)
    assert light.embed(["house " * 126])[0] == pytest.approx(light.embed(["house " * 500])[0], abs=1e-6)


def test_no_text_gives_no_row(light):
    assert light.embed([]).shape == (0, light.embed_dim)


def test_gelu_is_that_of_torch():
    values = np.linspace(-8, 8, 4001, dtype=np.float32)
    assert gelu(values) == pytest.approx(torch.nn.functional.gelu(torch.from_numpy(values)).numpy(), abs=2e-6)


def test_damaged_or_absent_weights_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="no weight file"):
        NumpyText(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="copy it again"):
        NumpyText(tmp_path / "model.safetensors")
    write_weights(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not of lite0-minilm"):
        NumpyText(tmp_path / "other.safetensors")
