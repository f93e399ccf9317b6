"""Where an index lies: in a local folder, or under an address of an object store.

A local folder is a Path and an address a str from here on, so that a type says which it is.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ucore.config import did_you_mean
from ucore.errors import ConfigError

# Amazon S3 and what speaks like it, Google Cloud Storage, Azure; the last is a folder behind the same calls as these.
SCHEMES = ("s3", "gs", "az", "file-object-store")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # a Path has lost one of the two slashes

Place = Path | str


def place_of(place: str | Path) -> Place:
    """A folder as Path, file:///folder too; the address of an object store as str, without a slash at its end.

    Raises ConfigError for an address of another kind, or one that names no bucket.
    """
    parts = _ADDRESS.fullmatch(str(place))
    if parts is None:
        return Path(place)
    scheme, rest = parts.groups()
    if scheme == "file":
        return Path(unquote(urlsplit("file:///" + rest).path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES[:3])
        raise ConfigError(f"{place}: an index lies in a folder or under {known}{did_you_mean(scheme, SCHEMES)}")
    if not rest.strip("/"):
        raise ConfigError(f"{place} names no bucket; give {scheme}://BUCKET/INDEX")
    return f"{scheme}://{'/' if scheme == SCHEMES[3] else ''}{rest.strip('/')}"
