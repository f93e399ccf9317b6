"""What computes: the processor or a GPU, and whether it multiplies bfloat16."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ucore.errors import ConfigError

_lock, _keeping, _kept_for_good = threading.Lock(), 0, False  # who keeps freed memory in this process, and how long


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); emulation would be slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_bf16(device: str) -> bool:
    """Whether the device ("cpu" or "cuda") multiplies bfloat16 natively; older GPUs emulate it, slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else cpu_has_bf16()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or a processor, whichever class of error says so."""
    said = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in said)
    )


def pick_device(name: str = "auto") -> str:
    """`auto` becomes cuda where there is a GPU, else cpu; other names are checked. Raises ConfigError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name} was asked for, but torch finds no CUDA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name} was asked for, but the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    return name


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that tensors give back, instead of fetching it anew from the system at every step.

    On a processor that saves a twelfth to a third of the time. Says whether it was done; elsewhere it does nothing.
    """
    global _kept_for_good
    with _lock:
        _kept_for_good = _set_memory(trim=-1, mapped=0) or _kept_for_good
    return _kept_for_good


@contextmanager
def freed_memory_kept(device: torch.device | str = "cpu") -> Iterator[None]:
    """Within: as after `keep_freed_memory`, where `device` is the processor; afterwards the memory is given back."""
    global _keeping
    if torch.device(device).type != "cpu" or _kept_for_good:
        yield
        return
    with _lock:
        _keeping += 1
        if _keeping == 1:
            _set_memory(trim=-1, mapped=0)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if _keeping == 0 and not _kept_for_good:
                _set_memory(trim=2**26, mapped=2**16, threshold=2**25)  # the most that glibc itself goes up to


def _set_memory(trim: int, mapped: int, threshold: int | None = None) -> bool:
    """glibc's mallopt: free bytes on top that go back, how many blocks are mapped apart, and from which size on."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False  # somebody has decided otherwise
    try:
        library = ctypes.CDLL(None)
        done = bool(library.mallopt(-1, trim)) and bool(library.mallopt(-4, mapped))
        if threshold is not None:
            library.mallopt(-3, threshold)
            library.malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return done
