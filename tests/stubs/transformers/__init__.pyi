# For the type checker alone: reading the names of all models of this library takes it longer than all of ours.
from typing import Any

def __getattr__(name: str) -> Any: ...
