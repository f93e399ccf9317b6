"""All readers of bytes from outside."""

from targets_data import TARGETS
