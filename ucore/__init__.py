"""ucore: cross-domain satellite image-text retrieval, an open re-creation of UrbanCross (ACM MM 2024)."""

import time
from importlib.metadata import PackageNotFoundError, version

STARTED = time.perf_counter()  # about when this process, or a notebook's first cell, began

try:
    __version__ = version("ucore")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
