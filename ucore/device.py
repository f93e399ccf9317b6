"""What computes: the processor or a GPU, and whether it multiplies bfloat16."""

import ctypes

import torch

from ucore.errors import ConfigError


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); emulation would be slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_bf16(device: str) -> bool:
    """Whether the device ("cpu" or "cuda") multiplies bfloat16 natively; older GPUs emulate it, slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else cpu_has_bf16()


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

    On a processor that saves about a twelfth of a training step. Says whether it was done; elsewhere it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_max, 0))
