"""ucore: cross-domain satellite image-text retrieval, an open re-creation of UrbanCross (ACM MM 2024)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ucore")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
