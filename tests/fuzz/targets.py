"""All readers of bytes from outside."""
