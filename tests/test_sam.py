"""Any Segment Anything model by one name: published types, the shipped one, addresses, and what a file lacks."""

import importlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from makers_sam import tiny_sam
from segment_anything import sam_model_registry

from ucore import micro_sam, sam
from ucore.errors import CheckpointError, ConfigError
from ucore.weights import write_weights


@pytest.fixture(scope="module")
def small_types():
    """The published types at a hundredth of their size: their encoders' widths stay, which is what tells them apart."""
    patch = pytest.MonkeyPatch()
    builders = importlib.import_module("segment_anything.build_sam")
    full = builders._build_sam

    def shallow(encoder_embed_dim, encoder_depth, encoder_num_heads, encoder_global_attn_indexes, checkpoint=None):
        return full(encoder_embed_dim, 0, encoder_num_heads, [], checkpoint)

    patch.setattr(builders, "_build_sam", shallow)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def checkpoint(small_types, tmp_path_factory):
    """A file of type vit_b as Meta publishes them: a plain state dict in torch's format."""
    path = tmp_path_factory.mktemp("weights") / "sam_b.pth"
    torch.manual_seed(7)
    torch.save(sam_model_registry["vit_b"]().state_dict(), path)
    return path


def test_a_published_checkpoint_is_loaded_whole(checkpoint):
    before = torch.random.get_rng_state()
    model = sam.load_sam(f"vit_b:{checkpoint}", "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_fingerprint_follows_the_weights():
    model = tiny_sam()
    first = sam.fingerprint(model)
    assert first == sam.fingerprint(tiny_sam())
    model.mask_decoder.iou_token.weight.data[0, 0] += 1e-3
    assert sam.fingerprint(model) != first


@pytest.mark.parametrize("spec", ["vit_x:a.pth", "vit_h", "vit_h:", "", "sam", "http://host/sam.pth"])
def test_a_name_that_is_none_lists_the_choices(spec):
    with pytest.raises(ConfigError, match=r"sam-micro.*vit_h, vit_l, vit_b"):
        sam.load_sam(spec, "cpu")


def test_a_checkpoint_of_another_type_is_named(checkpoint):
    with pytest.raises(CheckpointError, match=r"sam_b.pth holds vit_b, not vit_h: write vit_b:.*sam_b.pth"):
        sam.load_sam(f"vit_h:{checkpoint}", "cpu")

    with pytest.raises(CheckpointError, match=r"sam_b.pth holds vit_b, not sam-micro: write vit_b:.*sam_b.pth"):
        sam.load_sam(f"sam-micro:{checkpoint}", "cpu")


def test_what_is_no_checkpoint_is_one_sentence(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent.pth.*vit_h, vit_l, vit_b"):
        sam.load_sam(f"vit_h:{tmp_path / 'absent.pth'}", "cpu")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut short"):
        sam.load_sam(f"vit_b:{cut}", "cpu")
    write_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="holds no Segment Anything model"):
        sam.load_sam(f"vit_b:{tmp_path / 'other.safetensors'}", "cpu")
    state = torch.load(checkpoint, weights_only=True)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(CheckpointError, match=r"no mask_decoder.iou_token.weight"):
        sam.load_sam(f"vit_b:{tmp_path / 'lacking.pth'}", "cpu")


def test_own_weights_of_the_small_model(tmp_path):
    torch.manual_seed(3)
    model = micro_sam.build_micro_sam()
    write_weights(tmp_path / "own.safetensors", model.state_dict())
    loaded = sam.load_sam(f"sam-micro:{tmp_path / 'own.safetensors'}", "cpu")
    assert sam.fingerprint(loaded) == sam.fingerprint(model)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; /short/ promises more bytes than it sends. `asked` counts the requests."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if not self.path.startswith("/short/"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"PK")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(checkpoint):
    Quiet.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(checkpoint.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address_is_downloaded_once(server, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("UCORE_CACHE", str(tmp_path))
    spec = f"vit_b:{server}/sam_b.pth?key=secret"
    first, second = sam.load_sam(spec, "cpu"), sam.load_sam(spec, "cpu")
    assert sam.fingerprint(first) == sam.fingerprint(second)
    assert len(Quiet.asked) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["sam_b.pth"]


def test_a_download_that_fails_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UCORE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="answered 404") as error:
        sam.load_sam(f"vit_b:{server}/other.pth?key=secret", "cpu")
    assert "secret" not in str(error.value)
    with pytest.raises(CheckpointError, match="broke off"):
        sam.load_sam(f"vit_b:{server}/short/sam_b.pth", "cpu")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(CheckpointError, match="cannot be reached"):
        sam.load_sam("vit_b:http://127.0.0.1:9/sam_b.pth", "cpu")
