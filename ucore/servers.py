"""Tiles from a server, politely: few requests a second, a cache, a name, and patience when asked to wait."""

import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

import ucore
from ucore.errors import ConfigError, DataError
from ucore.files import atomic_path, content_hash
from ucore.geo import MERCATOR_LIMIT, Bounds, ground_resolution
from ucore.tiles import Tiles, decode_tile, read_tile

ATTEMPTS = 5
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces of an answer
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is left alone
MOST_BYTES = 5_000_000  # of one tile
NO_DATA = (204, 404, 410)
COME_AGAIN = (408, 429, 500, 502, 503, 504)
MAPS_ONLY = ("tile.openstreetmap.org", "openstreetmap.fr")  # drawn maps, and bulk downloads are forbidden there


class _TryAgainError(Exception):
    """A request that may succeed later. wait: seconds the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class TileServer(Tiles):
    """An XYZ server; every tile is asked for once and kept under `cache`, absent ones (404) too.

    template: http(s) address with {z}, {x} and {y} (or {-y}: rows counted from the south, as with `tms`).
    attribution: whom the imagery's terms of use want named; required, and recorded with every sample.
    rate: most requests a second. most_tiles: most requests of one build. backoff_s: first pause after a failure;
    it doubles, up to five attempts, and Retry-After is honoured.
    """

    def __init__(
        self,
        template: str,
        zoom: int,
        attribution: str = "",
        cache: str | Path = "runs/tiles",
        rate: float = 2.0,
        most_tiles: int = 10_000,
        tms: bool = False,
        backoff_s: float = 1.0,
    ):
        self.template = _checked(template)
        parts = urlsplit(template)
        self.host = parts.netloc.rpartition("@")[2]
        if not attribution.strip():
            raise ConfigError(
                f"Tiles of {self.host} may be used by its terms only: name its owner with --attribution, for example "
                '--attribution "Imagery (c) City of Helsinki, CC BY 4.0".'
            )
        if not 0 < rate <= 50:
            raise ConfigError(f"--rate is {rate:g}; it must be above 0 and at most 50 requests a second.")
        if most_tiles < 1:
            raise ConfigError(f"--max-tiles is {most_tiles}; it must be at least 1.")
        self.zoom, self.tms, self.rate, self.most_tiles, self.backoff_s = zoom, tms, rate, most_tiles, backoff_s
        # The query often holds a key: it goes neither into names nor into manifests.
        self.name = f"{parts.scheme}://{self.host}{parts.path}"
        self.cache = Path(cache) / content_hash(template)
        self.bounds: Bounds = (-180.0, -MERCATOR_LIMIT, 180.0, MERCATOR_LIMIT)
        self.native_gsd_m = ground_resolution(0, zoom)
        self._session: Any = None
        self._last = 0.0  # when the last request began

    def tile(self, x: int, y: int) -> Image.Image | None:
        """From the cache, else from the server; None where it has none. Raises DataError where it refuses or fails."""
        path = self._place(x, y)
        if not path.exists():
            address = self._address(x, y)
            data = self._fetch(address)
            if data:
                decode_tile(data, f"The answer to {self._shown(x, y)}")  # before it is kept
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        try:
            empty = path.stat().st_size == 0
        except OSError:
            empty = False
        return None if empty else read_tile(path)

    def requests(self, windows: Sequence[Bounds]) -> int:
        """How many tiles the cache lacks. Raises ConfigError when they are more than `most_tiles`."""
        count = sum(not self._place(x, y).exists() for x, y in self.touched(windows))
        if count > self.most_tiles:
            raise ConfigError(
                f"This build would ask {self.host} for {count:,} tiles (about {count / self.rate / 3600:.1f} hours), "
                f"more than --max-tiles {self.most_tiles:,}. Choose smaller --bounds, a lower --zoom or a --limit; or "
                "raise --max-tiles where the terms of use allow it."
            )
        return count

    def _place(self, x: int, y: int) -> Path:
        return self.cache / str(self.zoom) / str(x) / f"{y}.tile"

    def _address(self, x: int, y: int) -> str:
        south = 2**self.zoom - 1 - y
        values = {"{z}": self.zoom, "{x}": x, "{y}": south if self.tms else y, "{-y}": south}
        return re.sub(r"\{-?[xyz]\}", lambda found: str(values[found[0]]), self.template)

    def _shown(self, x: int, y: int) -> str:
        return f"{self.host} for tile {self.zoom}/{x}/{y}"

    def _fetch(self, address: str) -> bytes:
        """The tile's bytes, b"" without data."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        def pause(state: Any) -> float:
            error = state.outcome.exception()
            return max(error.wait, self.backoff_s * 2 ** (state.attempt_number - 1))

        patient = Retrying(
            retry=retry_if_exception_type(_TryAgainError), stop=stop_after_attempt(ATTEMPTS), wait=pause, reraise=True
        )
        try:
            return patient(self._ask, address)
        except _TryAgainError as error:
            raise DataError(
                f"{self.host} did not deliver a tile in {ATTEMPTS} attempts ({error}). Check the address and the "
                "connection, then repeat the command: what was fetched is kept."
            ) from error

    def _ask(self, address: str) -> bytes:
        import requests

        if self._session is None:
            self._session = requests.Session()
            self._session.headers["User-Agent"] = f"ucore/{ucore.__version__} (research; builds image-text datasets)"
        time.sleep(max(0.0, self._last + 1 / self.rate - time.monotonic()))
        self._last = time.monotonic()
        try:
            with self._session.get(address, timeout=TIMEOUT, stream=True) as answer:
                status, wait = answer.status_code, retry_after(answer.headers.get("Retry-After", ""))
                data = answer.raw.read(MOST_BYTES + 1, decode_content=True) if status == 200 else b""
        except (requests.ConnectionError, requests.Timeout) as error:
            slow = isinstance(error, requests.Timeout)
            raise _TryAgainError("it takes too long" if slow else "it cannot be reached") from error
        except Exception as error:  # a broken answer: requests' and urllib3's errors have no common kind
            raise _TryAgainError(f"a broken answer: {type(error).__name__}") from error
        if status in COME_AGAIN and wait <= LONGEST_WAIT:
            raise _TryAgainError(f"status {status}", wait)
        if status in NO_DATA:
            return b""
        if status != 200:
            later = f" and asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
            raise DataError(
                f"{self.host} refuses with status {status}{later}. Check the address, the key in it and the terms of "
                "use, then repeat the command: what was fetched is kept."
            )
        if len(data) > MOST_BYTES:
            raise DataError(f"{self.host} sends tiles of more than {MOST_BYTES // 10**6} MB; is that the tile address?")
        return data


def _checked(template: str) -> str:
    """The template. Raises ConfigError for one that names no tiles."""
    try:
        parts = urlsplit(template)
    except ValueError as error:
        raise ConfigError("The tile address cannot be read; it looks like https://HOST/{z}/{x}/{y}.jpg.") from error
    fields = set(re.findall(r"\{[^{}]*\}", template))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{template!r} is not an http(s) address. Give one with {{z}}, {{x}} and {{y}}, or a folder.")
    missing = [name for name in ("{z}", "{x}") if name not in fields]
    missing += [] if fields & {"{y}", "{-y}"} else ["{y}"]
    if missing:
        raise ConfigError(
            f"The address {parts.scheme}://{parts.hostname}{parts.path} lacks {', '.join(missing)}: a tile address "
            "looks like https://HOST/{z}/{x}/{y}.jpg."
        )
    unknown = sorted(fields - {"{z}", "{x}", "{y}", "{-y}"})
    if unknown:
        raise ConfigError(f"The address holds {', '.join(unknown)}; only {{z}}, {{x}}, {{y}} and {{-y}} are filled in.")
    if parts.hostname.endswith(MAPS_ONLY):
        raise ConfigError(f"{parts.hostname} serves drawn maps and forbids bulk downloads. Choose a server of imagery.")
    return template


def retry_after(text: str) -> float:
    """Seconds that a Retry-After header (a number, or a date) asks for; 0 without one.

    A date is compared with this machine's clock, which may be wrong: it counts for an hour at most.
    """
    if text.strip().isdecimal():
        return float(text)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), 3600.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
