"""Captions from an OpenAI-compatible server (vLLM, Ollama, llama.cpp, ...): how large models are run.

endpoint = Endpoint("http://localhost:11434/v1:llava:7b", load_prompt())
endpoint.caption([image], [endpoint.prompt_for(["amenity=school"])])

Many requests at a time, tried again when the server is busy or broken; what an item came to is that item's affair: one
that fails is a `Failed` with a reason, and the rest goes on. Answers are a stranger's text and are capped in size.
The server's key, if it wants one, is read from the environment variable UCORE_API_KEY and is written nowhere.
"""

import base64
import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from io import BytesIO
from multiprocessing.pool import ThreadPool
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

import ucore
from ucore.errors import ConfigError, UserError
from ucore.files import content_hash, parse_json
from ucore.manifest import few
from ucore.prompts import Prompt
from ucore.servers import retry_after
from ucore.workers import Failed, reason_of

VERSION = 1  # of the request; part of the key under which captions are stored
KEY_VARIABLE = "UCORE_API_KEY"
ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds before a request is tried again, also where the server asks for more
MOST_BYTES = 1_000_000  # of an answer
MOST_SIGNS = 20_000  # of a text in it
LONGEST_SIDE = 1024  # pixels of the image that is sent
TOO_LONG = "it takes too long"
STALLED = 3  # times as many requests in a row as are made at a time, after which none is waited for
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
REFUSED = {"content_filter"}
MODEL_NAME = re.compile(r"[\w./:@+-]+")


class _TryAgainError(Exception):
    """A request that may succeed later. wait: seconds the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoCaptionError(Exception):
    """An answer that holds no caption, and will not when asked again."""


def is_address(spec: str) -> bool:
    """Whether a captioner's name is meant as an endpoint's address."""
    return spec.lower().startswith(("http://", "https://"))


def parse_address(spec: str) -> tuple[str, str]:
    """("http://HOST:PORT/v1", "MODEL") of "http://HOST:PORT/v1:MODEL". Raises ConfigError.

    The model begins after the first colon of the path, so that its name may hold colons and slashes.
    """
    wanted = "it must look like http://localhost:8000/v1:MODEL, for example http://localhost:11434/v1:llava:7b"
    try:
        parts = urlsplit(spec)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"The address {spec!r} cannot be read ({error}); {wanted}.") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"The address of {host} holds a name or password; put the key into {KEY_VARIABLE} instead.")
    path, _, model = parts.path.partition(":")
    if not host or parts.query or parts.fragment or not re.fullmatch(r"[\w./~-]*", path):
        raise ConfigError(f"The address {spec!r} cannot be used; {wanted}.")
    if not MODEL_NAME.fullmatch(model):
        raise ConfigError(f"The address {spec!r} names no model; {wanted}.")
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}", model


class Endpoint:
    """A captioner behind an address. See `captioner.Captioner`.

    concurrency: requests at a time. timeout_s: of a whole request. backoff_s: the first pause after a failure; it
    doubles, up to five attempts, and Retry-After is honoured up to a minute. Sampling is off (temperature 0, a fixed
    seed), as far as the server heeds it.
    """

    needs_images = True

    def __init__(
        self,
        spec: str,
        prompt: Prompt,
        max_new_tokens: int = 128,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        backoff_s: float = 1.0,
    ) -> None:
        self.base, self.model = parse_address(spec)
        self.host = urlsplit(self.base).netloc
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.concurrency, self.timeout_s, self.backoff_s = concurrency, timeout_s, backoff_s
        self.name = re.sub(r"[^\w.-]+", "-", self.model).strip("-.") or "endpoint"
        self._local = threading.local()
        self._loaded = False
        self._unanswered = 0  # requests in a row, of all threads, that took too long

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_local": threading.local()}

    def key(self) -> str:
        """Changes with address, model, prompt and settings; the server's weights cannot be seen from here."""
        settings = (self.max_new_tokens, LONGEST_SIDE)
        return content_hash("endpoint", VERSION, self.base, self.model, self.prompt.key(), *settings)

    def prompt_for(self, tags: Sequence[str], surrounding_tags: Sequence[str] = (), sample_id: str = "") -> str:
        """The prompt with the tags filled in; the same for every `sample_id`."""
        return self.prompt.fill(tags, surrounding_tags)

    def load(self) -> None:
        """Ask the server what it serves. Raises UserError where nobody answers, a key is wanted or a model."""
        if self._loaded:
            return
        try:
            status, data, _ = self._request("GET", "/models", timeout_s=min(self.timeout_s, 20.0))
            if status >= 500:
                raise _TryAgainError(f"status {status}")
        except _TryAgainError as error:
            raise UserError(
                f"No captioner answers at {self.base} ({error}). Start the server (for example `ollama serve` or "
                "`vllm serve MODEL`), or correct the address."
            ) from error
        except _NoCaptionError:  # a longer list than we read
            status, data = 200, b""
        if status in (401, 403):
            raise UserError(
                f"{self.host} wants a key (status {status}). Put a valid one into the environment variable "
                f"{KEY_VARIABLE}."
            )
        served = _served(data) if status == 200 else []
        if served and not {self.model, f"{self.model}:latest"} & set(served):
            raise ConfigError(
                f"{self.host} does not serve the model {self.model!r}. It serves: {few(sorted(served), 10)}."
            )
        self._loaded = True

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | Failed]:
        """One text, or `Failed`, for each image and its prompt, in their order."""
        self.load()
        pairs = list(zip(images, prompts, strict=True))
        if not pairs:
            return []
        # Threads of this pool die with the process: Ctrl-C does not wait for a server that stalls.
        with ThreadPool(min(self.concurrency, len(pairs))) as pool:
            return pool.map(self._one, pairs, chunksize=1)

    def _one(self, pair: tuple[Image.Image, str]) -> str | Failed:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        def pause(state: Any) -> float:
            error = state.outcome.exception()
            return min(LONGEST_WAIT, max(error.wait, self.backoff_s * 2 ** (state.attempt_number - 1)))

        patient = Retrying(
            retry=retry_if_exception_type(_TryAgainError), stop=stop_after_attempt(ATTEMPTS), wait=pause, reraise=True
        )
        if self._unanswered >= STALLED * self.concurrency:  # it would be waited for hours
            return Failed(
                f"{self.host} has not answered the last {self._unanswered} requests within {self.timeout_s:g} s"
            )
        try:
            return patient(self._ask, json.dumps(self._body(*pair)).encode())
        except _TryAgainError as error:
            return Failed(f"{self.host} gave no caption in {ATTEMPTS} attempts: {error}")
        except _NoCaptionError as error:
            return Failed(f"{self.host} gave no caption: {error}")
        except Exception as error:  # an image that cannot be encoded: that item's affair, too
            return Failed(reason_of(error))

    def _body(self, image: Image.Image, prompt: str) -> dict[str, Any]:
        image = image.convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        stream = BytesIO()
        image.save(stream, "JPEG", quality=95, subsampling=0)
        picture = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": picture}}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
            "seed": 0,
        }

    def _ask(self, body: bytes) -> str:
        try:
            status, data, wait = self._request("POST", "/chat/completions", body, self.timeout_s)
        except _TryAgainError as error:
            self._unanswered = self._unanswered + 1 if str(error) == TOO_LONG else 0
            raise
        self._unanswered = 0
        if status in BUSY:
            raise _TryAgainError(f"status {status}", wait)
        if status != 200:
            key = f"; is {KEY_VARIABLE} right?" if status in (401, 403) else ""
            raise _NoCaptionError(f"status {status}{key}")
        return _text_of(data)

    def _request(self, method: str, path: str, body: bytes | None = None, timeout_s: float = 20.0) -> Any:
        """(status, the answer's bytes, seconds to wait that the server asked for)."""
        import requests

        deadline = time.monotonic() + timeout_s
        try:
            with self._session().request(
                method, self.base + path, data=body, timeout=(min(10.0, timeout_s), timeout_s), stream=True,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                data = bytearray()
                while piece := answer.raw.read1(65536, decode_content=True):
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise _NoCaptionError(f"the answer is longer than {MOST_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise _TryAgainError(TOO_LONG)
                return answer.status_code, bytes(data), retry_after(answer.headers.get("Retry-After", ""))
        except requests.Timeout as error:
            raise _TryAgainError(TOO_LONG) from error
        except requests.ConnectionError as error:
            raise _TryAgainError("it cannot be reached") from error
        except (_TryAgainError, _NoCaptionError):
            raise
        except Exception as error:  # a broken answer: requests' and urllib3's errors have no common kind
            raise _TryAgainError(f"a broken answer, {type(error).__name__}") from error

    def _session(self) -> Any:
        """A session of this thread."""
        import requests

        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.headers.update(
                {
                    "User-Agent": f"ucore/{ucore.__version__}",
                    "Content-Type": "application/json",
                    "Accept-Encoding": "identity",
                }
            )
            session.auth = _authorise  # instead of what a .netrc may hold for the host
            self._local.session = session
        return self._local.session


def _authorise(request: Any) -> Any:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key:
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _served(data: bytes) -> list[str]:
    """Names of the models that an answer to /models lists; [] where it is not such an answer."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        return [str(model["id"])[:200] for model in parse_json(data)["data"]]
    return []


def broken_off(text: str) -> str:
    """A text that ran into the limit of its length, marked as cut: without its last word, which may be half of one."""
    whole = text.rstrip("'\")]\u201d\u2019").endswith((".", "!", "?", "\u3002"))
    return text if whole or not text else re.sub(r"\s+\S*$", "", text) + " \u2014"  # what has no spaces is left whole


def _text_of(data: bytes) -> str:
    """The text of a chat completion. Raises _NoCaptionError, or _TryAgainError for an answer that was cut."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        cut = data.lstrip()[:1] == b"{"
        raise (_TryAgainError if cut else _NoCaptionError)(
            "the answer is cut short" if cut else "the answer is no JSON; is the address right?"
        ) from error
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        refusal, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _NoCaptionError("the answer holds no choices") from None
    if refusal or str(choice.get("finish_reason")) in REFUSED:
        raise _NoCaptionError("the model refused")
    if isinstance(content, list):  # in parts
        content = " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    if not isinstance(content, str) or not content.strip():
        raise _NoCaptionError("the text is empty")
    # JSON may hold halves of a character, which no file can.
    text = content[:MOST_SIGNS].encode("utf-8", "replace").decode("utf-8").strip()
    return broken_off(text) if choice.get("finish_reason") == "length" else text
