"""One training in several processes: which of them writes, what each of them reads, and sums over all of them.

    torchrun --nproc-per-node 8 --no-python ucore train --data DATA --scale full --out runs/full

torchrun says by environment variables how many processes there are. Without it there is one, and nothing here does
anything. Every function that speaks to the other processes must be called by all of them.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from ucore.device import pick_device
from ucore.errors import ConfigError, UserError

PATIENCE = timedelta(hours=12)  # for another process at work; one that died is noticed at once
SILENCE = timedelta(minutes=30)  # in the middle of a step: a machine that lost its power or its net says nothing
BUCKET = 2**25  # numbers summed at once: 128 MB


_steps: Any = None  # the group that sums


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This one's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the one that writes and prints."""
    return rank() == 0


def join(device: str) -> str:
    """Train from here on with the processes that torchrun started; returns this one's own device for `device`.

    Only the first one's standard output is left; errors are said by each. Raises ConfigError where the processes of a
    machine cannot have a GPU each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return pick_device(device)
    if ":" in device:
        raise ConfigError(
            f"--device {device} names one GPU for several processes; use --device cuda: each takes its own"
        )
    own = pick_device(device)
    if own == "cuda":
        own = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(own)
    global _steps
    _all(dist.init_process_group, "gloo" if own == "cpu" else "nccl", timeout=PATIENCE)
    _steps = _all(dist.new_group, timeout=SILENCE)
    atexit.register(dist.destroy_process_group)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    return own


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through it before the others: for what is computed once and then read from files.

    All leave it together, since one that finds no files computes anew, for longer than a step may take.
    """
    if not is_first():
        agree(True)
    yield
    if is_first():
        agree(True)
    agree(True)


def agree(said: bool) -> bool:
    """Whether every process says so; waits for all."""
    if size() == 1:
        return said
    flag = torch.tensor(int(said), device=_device())
    _all(dist.all_reduce, flag, dist.ReduceOp.MIN)
    return bool(flag)


def from_first(value: Any) -> Any:
    """The first process's `value`, which must be small."""
    if size() == 1:
        return value
    box = [value]
    _all(dist.broadcast_object_list, box, src=0, device=_device())
    return box[0]


def require_alike(value: Any, otherwise: str) -> None:
    """Raise ConfigError, with the sentence `otherwise`, unless every process has the first one's small `value`."""
    if not agree(value == from_first(value)):
        raise ConfigError(otherwise)


def exchange(rows: np.ndarray, pieces: Sequence[slice]) -> None:
    """Fill `rows` (N, ...) everywhere: piece i was computed by process i modulo their number."""
    if size() == 1:
        return
    for number, piece in enumerate(pieces):
        block = np.ascontiguousarray(rows[piece])
        data = torch.from_numpy(block.reshape(-1).view(np.uint8)).to(_device())
        _all(dist.broadcast, data, src=number % size())
        rows[piece] = data.cpu().numpy().view(rows.dtype).reshape(block.shape)


def sum_over_all(tensor: Tensor) -> Tensor:
    """`tensor`, replaced by its sum over all processes, in which every one takes part with the same shape."""
    if size() > 1:
        _all(dist.all_reduce, tensor, group=_steps)
    return tensor


@torch.no_grad()
def synchronise(module: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            data = tensor.detach().to(_device()).contiguous()
            _all(dist.broadcast, data, src=0)
            tensor.copy_(data)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over all processes; one that has none anywhere keeps none, as the optimiser then skips it."""
    if size() == 1:
        return
    parameters = list(parameters)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=_device())
    _all(dist.all_reduce, has, dist.ReduceOp.MAX, group=_steps)
    bucket: list[Tensor] = []
    for parameter, anywhere in zip(parameters, has.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= BUCKET:
                _sum_bucket(bucket)
                bucket = []
    _sum_bucket(bucket)


def _sum_bucket(grads: list[Tensor]) -> None:
    if grads:
        flat = sum_over_all(torch.cat([grad.reshape(-1) for grad in grads]))
        for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))


def _device() -> torch.device:
    """Where tensors must be to travel."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _all(collective: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return collective(*arguments, **named)
    except RuntimeError as error:  # gloo's and NCCL's, whose errors are a kind of it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"Another process of this training ended or cannot be reached ({reason}). Its own message says why; "
            "mend that and repeat the command to go on from the last epoch."
        ) from error
