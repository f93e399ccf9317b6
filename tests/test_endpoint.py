"""An OpenAI-compatible endpoint that works, stalls, fails and lies: a local server plays it."""

import base64
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ucore.captioner import load_captioner
from ucore.cleaning import clean_caption
from ucore.endpoint import ATTEMPTS, KEY_VARIABLE, MOST_SIGNS, Endpoint, broken_off, parse_address
from ucore.errors import ConfigError, UserError
from ucore.prompts import load_prompt
from ucore.workers import Failed


class Server(ThreadingHTTPServer):
    """Says which prompt it got and how large its image is; `faults` maps a prompt to answers given first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.faults: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.models = (200, json.dumps({"data": [{"id": "llava:7b"}]}).encode())
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.at_once, self.most_at_once = 0, 0
        self.lock, self.stall = threading.Lock(), threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/v1:llava:7b"


def said(text, **other) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **other}]}).encode()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.keys.add(self.headers["Authorization"])
        self.reply(self.server.models[0], {}, self.server.models[1])

    def do_POST(self):
        server = self.server
        server.keys.add(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, picture = body["messages"][0]["content"]
        prompt = text["text"]
        with server.lock:
            server.bodies.append(body)
            server.asked[prompt] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults[prompt].pop(0) if server.faults.get(prompt) else None
        time.sleep(0.02)
        with server.lock:
            server.at_once -= 1
        if fault and fault[0] == 0:
            server.stall.wait(30)
            self.close_connection = True
            return
        data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
        size = Image.open(BytesIO(data)).size
        self.reply(*(fault or (200, {}, said(f" {prompt} {size[0]}x{size[1]} "))))

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        if headers.get("Transfer-Encoding") == "chunked":
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            headers = {"Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return
        if headers.get("Content-Length", str(len(body))) != str(len(body)):
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.stall.set()
        running.shutdown()


def endpoint(server: Server, **options) -> Endpoint:
    return Endpoint(server.address, load_prompt(), **{"backoff_s": 0.01, **options})


PICTURE = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


def test_every_item_gets_its_own_answer_in_order_and_several_are_asked_at_once(server):
    asked = load_captioner(server.address, batch_size=4, max_new_tokens=33)
    prompts = [f"prompt {number}" for number in range(20)]
    pictures = [PICTURE.resize((10 + number, 20)) for number in range(20)]
    assert asked.caption(pictures, prompts) == [f"prompt {number} {10 + number}x20" for number in range(20)]
    assert asked.needs_images and asked.name == "llava-7b" and asked.caption([], []) == []
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("llava:7b", 33, 0)
    assert 1 < server.most_at_once <= 4 and max(server.asked.values()) == 1


def test_large_and_odd_pictures_are_made_fit(server):
    pictures = [Image.new("RGB", (4000, 1000)), Image.new("RGBA", (8, 8)), Image.new("I;16", (30, 40)), "no picture"]
    texts = endpoint(server).caption(pictures, ["a", "b", "c", "d"])
    assert texts[:3] == ["a 1024x256", "b 8x8", "c 30x40"] and isinstance(texts[3], Failed)


def test_an_answer_that_ran_into_its_limit_is_marked_as_cut(server):
    cut, whole = "A road along a wide resid", "A road along houses."
    server.faults = {name: [(200, {}, said(text, finish_reason="length"))] for name, text in (("a", cut), ("b", whole))}
    texts = endpoint(server).caption([PICTURE] * 2, ["a", "b"])
    assert texts == ["A road along a wide \u2014", whole]
    assert [broken_off(text) for text in ("\u6c34\u9053", "- houses\n- wat")] == [
        "\u6c34\u9053 \u2014",
        "- houses\n- \u2014",
    ]
    cleaned = clean_caption(texts[0])
    assert (cleaned.text, cleaned.problems) == ("A road along a wide.", ("unfinished",))


GOOD = said("fine")
BAD = {
    "html": ((200, {}, b"<html>Welcome to nginx</html>"), "no JSON; is the address right"),
    "empty": ((200, {}, b""), "no JSON"),
    "other": ((200, {}, b'{"hello": "world"}'), "no choices"),
    "list": ((200, {}, b"[1]"), "no choices"),
    "nothing": ((200, {}, b'{"choices": []}'), "no choices"),
    "odd": ((200, {}, b'{"choices": [{"message": "x"}]}'), "no choices"),
    "null": ((200, {}, said(None)), "text is empty"),
    "number": ((200, {}, said(7)), "text is empty"),
    "blank": ((200, {}, said("  \n ")), "text is empty"),
    "refusal": ((200, {}, b'{"choices": [{"message": {"refusal": "I cannot", "content": null}}]}'), "refused"),
    "filter": ((200, {}, said("x", finish_reason="content_filter")), "refused"),
    "odd reason": ((200, {}, said("  ", finish_reason=["stop"])), "text is empty"),
    "huge": ((200, {}, said("x" * 3_000_000)), "longer than 1,000,000 bytes"),
    "deep": ((200, {}, b'{"choices":' + b"[" * 200_000), "cut short"),
    "wrong": ((400, {}, b"{}"), "status 400"),
    "moved": ((302, {"Location": "http://127.0.0.1:9/"}, b""), "status 302"),
    "denied": ((401, {}, b"{}"), f"status 401; is {KEY_VARIABLE} right"),
    "cut": ((200, {}, GOOD[:-9]), "5 attempts: the answer is cut short"),
    "short": ((200, {"Content-Length": "5000"}, GOOD), "5 attempts: a broken answer"),
    "down": ((503, {}, b"busy"), "5 attempts: status 503"),
}


def test_what_fails_is_that_items_affair_and_says_why(server):
    server.faults = {name: [fault] * 5 for name, (fault, _) in BAD.items()}
    prompts = [word for name in BAD for word in (name, f"well {name}")]
    texts = endpoint(server).caption([PICTURE] * len(prompts), prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        if prompt in BAD:
            assert isinstance(text, Failed) and BAD[prompt][1] in text.reason and "\n" not in text.reason, (
                prompt,
                text,
            )
        else:
            assert text == f"{prompt} 64x48"
    often = {name for name, (_, reason) in BAD.items() if "5 attempts" in reason} | {"deep"}
    assert all(server.asked[name] == (5 if name in often else 1) for name in BAD)


def test_what_passes_is_tried_again(server):
    date = formatdate(time.time() - 60, usegmt=True)
    server.faults = {
        "busy": [(429, {"Retry-After": "0"}, b""), (429, {"Retry-After": date}, b""), (500, {}, b"")],
        "broken": [(200, {}, GOOD[:20]), (502, {"Retry-After": "nonsense"}, b"<html>")],
        "stalls": [(0, {}, b"")],
    }
    texts = endpoint(server, timeout_s=1.0).caption([PICTURE] * 3, ["busy", "broken", "stalls"])
    assert texts == ["busy 64x48", "broken 64x48", "stalls 64x48"]
    assert server.asked == {"busy": 4, "broken": 3, "stalls": 2}


def test_a_server_that_stalls_for_good_is_not_waited_for(server):
    server.faults = {name: [(0, {}, b"")] * 100 for name in "abcdefgh"}
    asked = endpoint(server, timeout_s=0.2, concurrency=2)
    texts = asked.caption([PICTURE] * 8, list("abcdefgh"))
    assert all(isinstance(text, Failed) for text in texts)
    assert sum(server.asked[name] for name in "abcdefgh") <= 2 * ATTEMPTS + 2
    assert "has not answered the last" in texts[-1].reason
    server.faults = {}
    assert all(isinstance(text, Failed) for text in asked.caption([PICTURE], ["a"]))
    assert endpoint(server).caption([PICTURE], ["a"]) == ["a 64x48"]  # another call asks again


def test_a_server_that_asks_for_time_gets_it(server, monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: waited.append(seconds))
    server.faults = {"a": [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "9999"}, b""), (500, {}, b"")]}
    assert endpoint(server, backoff_s=2.0).caption([PICTURE], ["a"]) == ["a 64x48"]
    assert [seconds for seconds in waited if seconds > 1] == [
        7,
        60,
        8,
    ]  # asked for, at most a minute, 2 s doubled twice


def test_answers_are_a_strangers_text(server):
    server.faults = {
        "half": [(200, {}, b'{"choices": [{"message": {"content": "a \\ud800 b"}}]}')],
        "long": [(200, {"Transfer-Encoding": "chunked"}, said("word " * 50_000))],
        "parts": [(200, {}, said([{"type": "text", "text": "a"}, {"type": "x"}, {"text": "b"}, 3]))],
    }
    half, long, parts = endpoint(server).caption([PICTURE] * 3, ["half", "long", "parts"])
    assert half == "a ? b" and parts == "a b"
    assert isinstance(long, str) and MOST_SIGNS - 2 < len(long) <= MOST_SIGNS


def test_the_key_comes_from_the_environment_and_stays_there(server, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    endpoint(server).caption([PICTURE], ["a"])
    assert server.keys == {None}
    monkeypatch.setenv(KEY_VARIABLE, " sk-secret ")
    server.faults = {"b": [(401, {}, b"{}")]}
    asked = endpoint(server)
    (failed,) = asked.caption([PICTURE], ["b"])
    assert server.keys == {None, "Bearer sk-secret"}
    assert "sk-secret" not in f"{failed}{asked.__dict__}{server.bodies}" and b"sk-secret" not in pickle.dumps(asked)
    assert pickle.loads(pickle.dumps(asked)).caption([PICTURE], ["c"]) == ["c 64x48"]


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        (
            (401, b""),
            UserError,
            f"wants a key .status 401.. Put a valid one into the environment variable {KEY_VARIABLE}",
        ),
        ((503, b"loading"), UserError, "No captioner answers at .* .status 503.. Start the server"),
        (
            (200, b'{"data": [{"id": "a"}, {"id": "b\\n"}]}'),
            ConfigError,
            r"does not serve the model 'llava:7b'. It serves: a",
        ),
    ],
)
def test_a_server_that_cannot_help_is_one_sentence_at_the_start(server, models, error, message):
    server.models = models
    with pytest.raises(error, match=message) as caught:
        endpoint(server).load()
    assert "\n" not in str(caught.value) and not server.bodies


@pytest.mark.parametrize(
    "models", [(404, b""), (200, b"<html>"), (200, b"{}"), (200, b"x" * 2_000_000), (200, b'{"data": 3}')]
)
def test_a_server_that_lists_no_models_may_still_caption(server, models):
    server.models = models
    assert endpoint(server).caption([PICTURE], ["a"]) == ["a 64x48"]


def test_nobody_there_is_one_sentence():
    with Server() as gone:
        address = gone.address
    with pytest.raises(
        UserError, match=r"No captioner answers at http://127\.0\.0\.1:.*it cannot be reached.*Start the server"
    ):
        load_captioner(address).load()


@pytest.mark.parametrize(
    ("spec", "base", "model"),
    [
        ("http://localhost:8000/v1:llava", "http://localhost:8000/v1", "llava"),
        ("http://localhost:11434/v1:llava:7b", "http://localhost:11434/v1", "llava:7b"),
        ("https://host/api/v1/:Qwen/Qwen3-VL-8B", "https://host/api/v1", "Qwen/Qwen3-VL-8B"),
        ("http://[::1]:8000/v1:m", "http://[::1]:8000/v1", "m"),
        ("http://10.0.0.7/v1:hf.co/x/y:Q4_K_M", "http://10.0.0.7/v1", "hf.co/x/y:Q4_K_M"),
    ],
)
def test_addresses_are_read(spec, base, model):
    assert parse_address(spec) == (base, model)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http://localhost:8000/v1", "names no model"),
        ("http://localhost:8000/v1:", "names no model"),
        ("http://localhost:8000/v1:a b", "names no model"),
        ("http://localhost:port/v1:m", "cannot be read"),
        ("http://localhost:99999/v1:m", "cannot be read"),
        ("http://[::1/v1:m", "cannot be read"),
        ("http://:8000/v1:m", "cannot be used"),
        ("http://host/v1?key=1:m", "cannot be used"),
        ("http://host/v1:m?key=1", "cannot be used"),
        ("http://me:secret@host/v1:m", "holds a name or password"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_captioner(spec)
    assert "secret" not in str(caught.value)


def test_the_name_of_the_store_follows_what_changes_the_words(server):
    settings = [{}, {"max_new_tokens": 5}]
    keys = {endpoint(server, **options).key() for options in settings}
    keys |= {
        Endpoint(server.address + "x", load_prompt()).key(),
        Endpoint(server.address, load_prompt("grounded")).key(),
    }
    assert len(keys) == 4 and endpoint(server, timeout_s=3, concurrency=2).key() == endpoint(server).key()


CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
import sys
from PIL import Image
from ucore.endpoint import Endpoint
from ucore.prompts import load_prompt
Endpoint(sys.argv[1], load_prompt()).caption([Image.new("RGB", (8, 8))] * 3, ["stalls"] * 3)
"""


def test_ctrl_c_does_not_wait_for_a_server_that_stalls(server):
    server.faults = {"stalls": [(0, {}, b"")] * 9}
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.address], stderr=subprocess.PIPE, text=True)
    try:
        while server.asked["stalls"] < 3:
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in child.communicate(timeout=20)[1]  # the server would hold it for 30 s
    finally:
        child.kill()
