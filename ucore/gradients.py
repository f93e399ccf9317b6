"""Gradients of one loss over a batch that is too large for the memory, or spread over processes.

A contrastive loss compares every image with every text, so that its gradient is no sum over parts of the batch. But it
reaches the towers through the features alone (GradCache: Gao et al. 2021, arXiv 2101.06983): features of all parts
first, without keeping what backward needs; then the loss and its gradient on the features of the whole batch; then each
part again, through which its share of that gradient is sent back. What results is exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ucore import distributed

Parts = dict[str, Tensor]
Losses = Callable[[Tensor, Tensor], Parts]  # of image and text features (B, D) each


def total(parts: Parts) -> Tensor:
    """Sum of the loss's parts, a scalar with gradients."""
    return torch.stack(list(parts.values())).sum()


def chunked_backward(
    encode: Callable[[int], tuple[Tensor, Tensor]],
    chunks: Sequence[slice],
    losses: Losses,
    parameters: Sequence[nn.Parameter],
    width: int,
    device: torch.device | str = "cpu",
) -> Parts:
    """Add the gradients of the sum of the loss's parts to `parameters`; returns the parts.

    encode: from a chunk's number to its image and text features, both float32 (b, width); it must give the same
    features each time, dropout included. chunks: which rows of the batch each is, in order.
    Process r of n encodes the chunks r, r + n, ...; every process computes the loss of the whole batch from the
    gathered features and sends back the gradient of its own chunks, so that any loss works as it is. The gradients
    are then summed over the processes.
    """
    own = range(distributed.rank(), len(chunks), distributed.size())
    features = torch.zeros(2, chunks[-1].stop, width, device=device)
    kept: tuple[Tensor, Tensor] | None = None
    for number in own:
        with torch.set_grad_enabled(number == own[-1]):  # the last one is not encoded again
            kept = encode(number)
        features[0, chunks[number]], features[1, chunks[number]] = kept[0].detach(), kept[1].detach()
    image, text = (part.clone().requires_grad_() for part in distributed.sum_over_all(features))
    parts = losses(image, text)
    total(parts).backward()
    share_gradients(parameters)  # of what only the loss uses, such as the temperature: the same in every process
    assert image.grad is not None and text.grad is not None
    for number in reversed(own):
        encoded = encode(number) if kept is None else kept
        kept = None
        torch.autograd.backward(encoded, [image.grad[chunks[number]], text.grad[chunks[number]]])
    distributed.sum_gradients(parameters)
    return {name: part.detach() for name, part in parts.items()}


def share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Divide gradients that every process has in full by their number, so that their sum is right."""
    if distributed.size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= distributed.size()
