"""Keys and passwords stay where they were given: not in files, not in messages, not in what is kept for later."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from makers_maps import make_places

from ucore.captioner import load_captioner
from ucore.captions import caption_dataset
from ucore.endpoint import KEY_VARIABLE
from ucore.errors import CheckpointError, ConfigError, DataError, UserError, without_secrets
from ucore.notebooks import checked_parameters, find_notebook
from ucore.report import Report
from ucore.sam import load_sam
from ucore.servers import TileServer

SECRET = "s3cr3t-0f-mine"


class Answer(BaseHTTPRequestHandler):
    """Takes every caption request, and has neither tiles nor weights."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "llava"}]}).encode() if self.path.endswith("/models") else b"no such thing"
        self._say(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        self._say(json.dumps({"choices": [{"message": {"content": "A house on green land."}}]}).encode())

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    opened = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    opened.keys = []  # type: ignore[attr-defined]
    threading.Thread(target=opened.serve_forever, daemon=True).start()
    yield opened
    opened.shutdown()
    opened.server_close()


def holding(folder: Path) -> list[str]:
    """Files below `folder` with the secret in them or in their names."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in paths if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


def test_the_key_of_an_endpoint_goes_to_the_server_alone(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    spec = f"http://127.0.0.1:{server.server_port}/v1:llava"
    caption_dataset(make_places(tmp_path / "data", 2), spec, tmp_path / "captions", progress=False)
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert any((tmp_path / "captions").rglob("*.parquet"))
    assert holding(tmp_path) == []
    assert SECRET not in "".join(capfd.readouterr())


def test_a_key_in_the_address_of_tiles_is_not_kept(server, tmp_path):
    host = f"127.0.0.1:{server.server_port}"
    for address in (
        f"http://me:{SECRET}@{host}/{{z}}/{{x}}/{{y}}.png",
        f"http://{host}/{{z}}/{{x}}/{{y}}.png?key={SECRET}",
    ):
        source = TileServer(address, 17, "somebody", cache=tmp_path / "tiles", rate=50)
        with pytest.raises(DataError) as caught:
            source.tile(1, 1)
        assert SECRET not in f"{caught.value}{source.name}{source.fingerprint()}"
    assert holding(tmp_path) == []


def test_a_key_in_the_address_of_weights_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError) as caught:
        load_sam(f"vit_b:http://me:{SECRET}@127.0.0.1:{server.server_port}/sam.pth?token={SECRET}")
    assert SECRET not in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("sam.pth"))) == 1
    assert holding(tmp_path) == []


@pytest.mark.parametrize("address", [f"ftp://me:{SECRET}@host/{{z}}", f"http://me:{SECRET}@host:99999/v1:m",
                                     f"http://host/v1:m?key={SECRET}", f"http://[{SECRET}@/"])  # fmt: skip
def test_no_message_repeats_it(address):
    for refuse in (lambda: load_captioner(address), lambda: TileServer(address, 17, "somebody")):
        with pytest.raises(UserError) as caught:
            refuse()
        assert SECRET not in str(caught.value)


def test_reports_and_notebooks_do_not_hold_it(tmp_path):
    address = f"vit_b:https://me:{SECRET}@host/sam.pth?token={SECRET}"
    report = Report("04_train-a", tmp_path, dataset="x", simulated=True, seed=0, command=f"ucore segment {address}",
                    parameters={"sam": address, "nested": [{"a": address}]})  # fmt: skip
    report.add("a", "mR", 1.0)
    assert "host/" in report.write().read_text("utf-8")
    assert holding(tmp_path) == []
    for notebook, given in (
        ("02", {"out": address}), ("07", {"arms": ["ema=0", address]}), ("07", {"arms": [{"deep": [address]}]}),
        ("07", {"arms": [{address: 1}]}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="written into the executed notebook") as caught:
            checked_parameters(find_notebook(notebook), given)
        assert SECRET not in str(caught.value)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError, match="'arms' of 07_ablations is nested too deeply"):
        checked_parameters(find_notebook("07"), {"arms": deep})


def test_what_counts_as_a_secret():
    assert (
        without_secrets("see https://a:b@host/x?k=1 and s3://k:s@bucket/y")
        == "see https://host/x?... and s3://bucket/y"
    )
    assert (
        without_secrets("me@host.example asks why? http://host:1/v1:m")
        == "me@host.example asks why? http://host:1/v1:m"
    )
    assert SECRET not in str(UserError(f"https://x:{SECRET}@y"))
