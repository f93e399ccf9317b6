"""ucore: cross-domain satellite image-text retrieval, an open re-creation of UrbanCross (ACM MM 2024)."""

import os
import time
from importlib.metadata import PackageNotFoundError, version

STARTED = time.perf_counter()  # about when this process, or a notebook's first cell, began

for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")  # read by the libraries below when they are first imported

try:
    __version__ = version("ucore")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
