import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ucore import model as model_module
from ucore.errors import CheckpointError
from ucore.files import write_json
from ucore.model import load_encoder
from ucore.weights import fill, read_weights, write_weights

STATE = {"tower.weight": torch.arange(6.0).view(2, 3), "tower.bias": torch.tensor([1.0, -1.0])}


class Evil:
    """Makes a folder when unpickled by code that runs what a pickle says."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.canary,)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}],
)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_unwrapped(tmp_path, wrap, prefix, zipped):
    state = {prefix + key: value for key, value in STATE.items()}
    torch.save(wrap(state), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(read_weights(tmp_path / "a.pt"), STATE, rtol=0, atol=0)


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.testing.assert_close(read_weights(tmp_path / "a.safetensors"), STATE, rtol=0, atol=0)


def test_what_is_written_can_be_read_again(tmp_path):
    transposed = {"w": torch.arange(6.0).view(2, 3).T, "h": torch.tensor([0.5], dtype=torch.float16)}
    write_weights(tmp_path / "a.safetensors", {**transposed, "p": nn.Parameter(torch.ones(2))})
    stored = load_file(tmp_path / "a.safetensors")
    torch.testing.assert_close(stored, {**transposed, "p": torch.ones(2)}, rtol=0, atol=0)


def test_others_may_read_weights_as_they_may_other_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_weights(tmp_path / "a.safetensors", STATE)
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o640}


def test_a_missing_file_is_named(tmp_path):
    assert "no weight file at" in refusal(tmp_path / "absent.pt")
    assert "no weight file at" in refusal(tmp_path / "absent.safetensors")
    (tmp_path / "folder.pt").mkdir()
    assert "no weight file at" in refusal(tmp_path / "folder.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.ones(2), {"state_dict": {"a": 1}}, "text", None])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "holds no state_dict of tensors" in refusal(tmp_path / "a.pt")


# --- code ---------------------------------------------------------------------------------------------------


def write_evil(path: Path, kind: str, evil: Evil) -> None:
    if kind.isdecimal():
        path.write_bytes(pickle.dumps({"weight": evil}, protocol=int(kind)))
    else:
        torch.save({"state_dict": {**STATE, "x": evil}}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["0", "1", "2", "3", "4", "5", "zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, kind):
    canary = tmp_path / "canary"
    write_evil(tmp_path / "a.pt", kind, Evil(canary))
    message = refusal(tmp_path / "a.pt")
    if kind != "0":  # torch does not read far enough into protocol 0 to see what it is
        assert "holds more than weights (pickled code)" in message
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path):
    write_evil(tmp_path / "a.pt", "zip", Evil(tmp_path / "canary"))
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "canary").is_dir()


def test_a_pickle_under_the_name_of_safetensors_is_not_unpickled(tmp_path):
    write_evil(tmp_path / "a.safetensors", "zip", Evil(tmp_path / "canary"))
    assert "not a safetensors file" in refusal(tmp_path / "a.safetensors")
    assert not (tmp_path / "canary").exists()


def test_a_whole_module_or_a_script_is_code_too(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "pickled code" in refusal(tmp_path / "module.pt")
    with warnings.catch_warnings(action="ignore"):  # deprecated, yet the form of OpenAI's own CLIP files
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    assert "pickled code" in refusal(tmp_path / "script.pt")


# --- damage -------------------------------------------------------------------------------------------------


def written(path: Path, kind: str) -> bytes:
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    whole = written(path, kind)
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        assert "cut short" in refusal(path) or kind == "legacy"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_changed_bytes_never_give_a_traceback(tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    whole, choice, refused = written(path, kind), random.Random(0), 0
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(choice.choice([1, 3, 10])):
            changed[choice.randrange(len(whole))] = choice.randrange(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.bin"])
@pytest.mark.parametrize("text", ["", "<!DOCTYPE html><html>Not found</html>", "version https://git-lfs.github.com/"])
def test_a_page_instead_of_the_download_is_no_checkpoint(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    message = refusal(tmp_path / name)
    assert "cut short or not a" in message
    assert "code" not in message


# --- filling ------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_fill_takes_every_layer():
    target, source = two_layers(), two_layers()
    fill(target, source.state_dict(), "it")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_fill_leaves_out_what_newer_code_computes():
    source = two_layers()
    old = {**source.state_dict(), "attn_mask": torch.ones(2, 2), "text.position_ids": torch.arange(2)}
    target = two_layers()
    fill(target, old, "it")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_a_mismatch_names_the_layers_and_changes_nothing():
    target = two_layers()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {**two_layers().state_dict(), "0.weight": torch.ones(5, 3), "head.bias": torch.ones(1)}
    del state["1.bias"]
    with pytest.raises(CheckpointError) as caught:
        fill(target, state, "a.pt as ViT")
    assert str(caught.value) == (
        "Cannot load a.pt as ViT: another architecture (0.weight is (5, 3) where (4, 3) is needed; no 1.bias; "
        "unknown head.bias); name the model it belongs to"
    )
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)


def test_a_mismatch_of_many_layers_is_counted():
    with pytest.raises(CheckpointError, match=r"\(no 0\.bias; no 0\.weight; no 1\.bias and 3 more\)"):
        fill(two_layers(), {"a": torch.ones(1), "b": torch.ones(1)}, "it")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_weights_that_are_no_numbers_are_refused_by_name(number):
    broken = {key: value.double() for key, value in two_layers().state_dict().items()}
    broken["0.weight"][1, 2] = number
    message = r"a\.pt as ViT holds NaN or infinite weights, in 0\.weight: its training went wrong, or .* copy it again"
    with pytest.raises(CheckpointError, match=message):
        fill(two_layers(), broken, "a.pt as ViT")
    broken["1.bias"][0] = number
    with pytest.raises(CheckpointError, match=r"in 0\.weight and 1 more: "):
        fill(two_layers(), broken, "it")


def test_a_mask_may_be_minus_infinity():
    def masked() -> torch.nn.Module:
        model = two_layers()
        model.register_buffer("attn_mask", torch.full((2, 2), -torch.inf).triu(1))
        model.register_buffer("count", torch.tensor(3))
        return model

    fill(masked(), masked().state_dict(), "it")


# --- checkpoints as published for open_clip -----------------------------------------------------------------


@pytest.fixture
def float32(monkeypatch):
    """Towers in float32 on every machine, so that features can be compared exactly."""
    monkeypatch.setattr(model_module, "has_bf16", lambda _: False)


def check_features(name: str, reference: Any, path: Path, prefix: str = "") -> None:
    """The weights of `reference`, saved in the form of RemoteCLIP's files, give the features of open_clip."""
    torch.save({prefix + key: value for key, value in reference.state_dict().items()}, path)
    encoder = load_encoder(name, path)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *encoder.image_size, generator=generator)
    tokens = encoder.tokenize(["an airport beside a river", "bare land"])
    with torch.inference_mode():
        mine = encoder.encode_image(images), encoder.encode_text(tokens)
        theirs = (
            reference.encode_image(images, normalize=True),
            reference.encode_text(
                open_clip.get_tokenizer(name)(["an airport beside a river", "bare land"]), normalize=True
            ),
        )
    assert all(features.dtype == torch.float32 for features in mine)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    torch.testing.assert_close(encoder.logit_scale.detach(), reference.logit_scale.detach().float())
    assert encoder.pretrained == str(path)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_small_clip_from_a_file_gives_the_features_of_open_clip(tmp_path, tiny_clip, prefix):
    torch.manual_seed(0)
    check_features(tiny_clip, open_clip.create_model(tiny_clip).eval(), tmp_path / "a.pt", prefix)


@pytest.mark.usefixtures("float32")
def test_a_model_that_normalises_over_batches_keeps_the_statistics_of_its_file(tmp_path, tiny_resnet):
    torch.manual_seed(0)
    reference = open_clip.create_model(tiny_resnet).train()
    with torch.no_grad():
        reference.encode_image(torch.randn(8, 3, 64, 64) + 1)
    check_features(tiny_resnet, reference.eval(), tmp_path / "a.pt")
    kept = load_encoder(tiny_resnet, tmp_path / "a.pt").clip.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in reference.state_dict().items() if "running" in name)


@pytest.mark.usefixtures("float32")
def test_the_architecture_of_remoteclip_from_a_file_gives_the_features_of_open_clip(tmp_path):
    torch.manual_seed(0)
    check_features("ViT-B-32", open_clip.create_model("ViT-B-32").eval(), tmp_path / "RemoteCLIP-ViT-B-32.pt")
    (tmp_path / "RemoteCLIP-ViT-B-32.pt").unlink()  # 600 MB


def test_the_file_of_another_architecture_names_layers(tmp_path, tiny_clip):
    config: Any = open_clip.get_model_config("RN50")
    with torch.device("meta"):
        resnet = open_clip.model.CLIP(**config).state_dict()
    # Names and shapes of RN50; each tensor repeats one number, so that the file stays small.
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in resnet.items()}, tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(tiny_clip, tmp_path / "RN50.pt")
    message = str(caught.value)
    assert f"Cannot load {tmp_path / 'RN50.pt'} as {tiny_clip}: another architecture" in message
    assert "visual.conv1.weight is (32, 3, 3, 3) where (64, 3, 16, 16) is needed and " in message
    assert "more); name the model it belongs to" in message


def test_a_tiny_dictionary_names_what_is_missing(tmp_path, tiny_clip):
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"no ln_final\.bias; no ln_final\.weight.*and \d+ more"):
        load_encoder(tiny_clip, tmp_path / "a.pt")


def test_a_tag_that_is_no_file_and_no_download_is_refused(tiny_clip):
    with pytest.raises(model_module.ConfigError, match="neither a weight file"):
        load_encoder(tiny_clip, "laion2b")
