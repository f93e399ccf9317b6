"""SAM's mask decoder for very many clicks on one image: the same function, less arithmetic.

segment_anything's decoder (Segment Anything, arXiv 2304.02643, appendix A) copies the image embedding for each click
and projects every one of its N positions to queries, keys and values in every attention. A click has 7 tokens, so here

- what the first layer computes of the image alone is computed once an image;
- later projections are moved to the other side of the product: the scores `(X W) q` of N positions are `X (W q)`, the
  values `softmax(..) (X W)` are `(softmax(..) X) W`, which costs H heads x 7 tokens instead of the width of the
  attention (28 against 64 for sam-micro, 56 against 128 for the published models);
- the last attention and the mask heads run for the tokens that are read: one quality, three masks;
- the upscaling, a third of the work, runs only for clicks that promise a mask of enough quality: the quality is known
  before.

Results equal the original's up to rounding; `tests/test_mask_generator.py` compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor
from torch.nn import functional as F

MASKS = 3  # a click is ambiguous: part, object, whole; the fourth mask token is for clearer prompts


@dataclass(frozen=True)
class ImageState:
    """What the decoder needs of one image, whatever the clicks: N positions, C channels, D attention channels."""

    positions: Tensor  # (N, C) embedding plus "no mask given"
    places: Tensor  # (N, C) positional code of the positions
    keys: Tensor  # (H, D / H, N) of the first layer's attention from tokens to image
    values: Tensor  # (H, N, D / H)
    queries: Tensor  # (H, N, D / H) of the first layer's attention from image to tokens


@dataclass(frozen=True)
class Clicks:
    """P clicks after the transformer: what masks are made of, and how good they will be."""

    positions: Tensor  # (P, N, C)
    tokens: Tensor  # (P, 3, C)
    quality: Tensor  # float32 (P, 3), predicted intersection over union

    def take(self, rows: Tensor) -> "Clicks":
        """Those of `rows`, int64 numbers or bool (P,)."""
        return Clicks(self.positions[rows], self.tokens[rows], self.quality[rows])


class PointDecoder:
    """Masks of single clicks on an image. `dtype`: of the large products and the logits; qualities are float32."""

    def __init__(self, sam: Sam, dtype: torch.dtype = torch.float32):
        self.sam, self.dtype = sam, dtype
        self.grid: tuple[int, int] = sam.prompt_encoder.image_embedding_size
        self.size = (4 * self.grid[0], 4 * self.grid[1])  # of the masks
        decoder = sam.mask_decoder
        if decoder.num_multimask_outputs != MASKS:
            raise ValueError(f"a mask decoder of {MASKS} masks a click is needed, not {decoder.num_multimask_outputs}")
        transformer: Any = decoder.transformer
        self.layers: list[Any] = list(transformer.layers)
        self.final, self.final_norm = transformer.final_attn_token_to_image, transformer.norm_final_attn
        self._upscale = self._prepare_upscaling()

    @torch.inference_mode()
    def prepare(self, embedding: Tensor) -> ImageState:
        """From an image's embedding, (C, h, w)."""
        sam, first = self.sam, self.layers[0]
        nothing = sam.prompt_encoder.no_mask_embed.weight
        positions = embedding.float().flatten(1).T + nothing
        places = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T
        to_image, to_tokens = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        heads = to_image.num_heads
        keys = to_image.k_proj(positions + places) * _scale(to_image)
        values, queries = to_image.v_proj(positions), to_tokens.q_proj(positions + places) * _scale(to_tokens)
        split = [_heads(each[None], heads)[0].to(self.dtype).contiguous() for each in (keys, values, queries)]
        return ImageState(
            positions.to(self.dtype), places.to(self.dtype), split[0].transpose(1, 2).contiguous(), split[1], split[2]
        )

    @torch.inference_mode()
    def attend(self, state: ImageState, points: Tensor) -> Clicks:
        """The transformer for clicks at `points`, float (P, 2): x and y in pixels of the encoder's input."""
        sam, decoder = self.sam, self.sam.mask_decoder
        ones = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompts, _ = sam.prompt_encoder(points=(points[:, None], ones), boxes=None, masks=None)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        codes = torch.cat([outputs.expand(len(points), -1, -1), prompts], dim=1)  # (P, T, C), also the tokens' places
        tokens, positions = codes, state.positions
        for number, layer in enumerate(self.layers):
            tokens, positions = self._layer(layer, number == 0, tokens, codes, positions, state)
        read = [0, *range(2, 2 + MASKS)]  # quality and the three masks; token 1 is the mask of clearer prompts
        queries = (tokens + codes)[:, read]
        tokens = tokens[:, read] + self._to_image(self.final, queries, positions, positions + state.places)
        tokens = self.final_norm(tokens)
        quality = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
        return Clicks(positions, tokens[:, 1:], quality)

    @torch.inference_mode()
    def masks(self, clicks: Clicks, wanted: Tensor) -> Tensor:
        """Logits of the `wanted` masks, bool (P, 3), of the clicks: (n, 4h, 4w), click by click."""
        heads = self.sam.mask_decoder.output_hypernetworks_mlps
        weights = torch.stack([heads[1 + i](clicks.tokens[:, i]) for i in range(MASKS)], dim=1)  # (P, 3, C / 8)
        logits = (weights.to(self.dtype) @ self._upscale(clicks.positions).transpose(1, 2))[wanted]
        # Every position became 2 x 2 and each of these 2 x 2 again: (h, w, 2, 2, 2, 2) to rows and columns.
        logits = logits.view(-1, *self.grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return logits.reshape(-1, *self.size)

    def _layer(
        self, layer: Any, first: bool, tokens: Tensor, codes: Tensor, positions: Tensor, state: ImageState
    ) -> tuple[Tensor, Tensor]:
        """One two-way block: tokens (P, T, C) and positions (P, N, C), or (N, C) before the first."""
        if first:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + codes
            tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        tokens = layer.norm1(tokens)
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        placed = None if first else positions + state.places
        if placed is None:
            tokens = tokens + self._to_shared_image(to_image, tokens + codes, state)
        else:
            tokens = tokens + self._to_image(to_image, tokens + codes, positions, placed)
        tokens = layer.norm2(tokens)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        keys, values = to_tokens.k_proj(tokens + codes), to_tokens.v_proj(tokens)
        if placed is None:
            scores = self._shared_scores(to_tokens, keys, state)
        else:
            scores = self._folded_scores(to_tokens, keys, placed)
        size, heads, count = len(tokens), to_tokens.num_heads, tokens.shape[1]
        shares = scores.view(size, heads, count, -1).softmax(dim=2).view(size, heads * count, -1)
        brought = self._folded_outputs(to_tokens, values)  # (P, H T, C)
        updated = torch.baddbmm(positions + to_tokens.out_proj.bias.to(self.dtype), shares.transpose(1, 2), brought)
        return tokens, _norm(layer.norm4, updated)

    def _to_shared_image(self, attention: Any, queries: Tensor, state: ImageState) -> Tensor:
        """Attention of tokens (P, T, C) to positions that no click has changed yet."""
        size, count, _ = queries.shape
        heads = attention.num_heads
        asked = _heads(attention.q_proj(queries).to(self.dtype), heads).transpose(0, 1).reshape(heads, size * count, -1)
        found = (asked @ state.keys).softmax(dim=-1) @ state.values
        found = found.view(heads, size, count, -1).permute(1, 2, 0, 3).reshape(size, count, -1)
        return attention.out_proj(found.float())

    def _to_image(self, attention: Any, queries: Tensor, positions: Tensor, placed: Tensor) -> Tensor:
        """Attention of tokens (P, T, C) to each click's own positions (P, N, C), projections folded into the tokens."""
        size, count, width = queries.shape
        heads = attention.num_heads
        asked = _heads(attention.q_proj(queries), heads) * _scale(attention)
        # The keys' bias adds the same to all scores of a token, which softmax does not see.
        folded = torch.einsum("phtd,hdc->phtc", asked, attention.k_proj.weight.view(heads, -1, width))
        folded = folded.reshape(size, heads * count, width).to(self.dtype)
        shares = (folded @ placed.transpose(1, 2)).softmax(dim=-1)
        gathered = (shares @ positions).float().view(size, heads, count, width)
        found = torch.einsum("phtc,hdc->pthd", gathered, attention.v_proj.weight.view(heads, -1, width))
        return attention.out_proj(found.flatten(2) + attention.v_proj.bias)  # shares add up to 1

    def _shared_scores(self, attention: Any, keys: Tensor, state: ImageState) -> Tensor:
        """Scores (P, H T, N) of positions that no click has changed yet with the tokens' keys (P, T, D)."""
        size, count, _ = keys.shape
        heads = attention.num_heads
        split = _heads(keys.to(self.dtype), heads).transpose(0, 1).reshape(heads, size * count, -1)
        scores = (split @ state.queries.transpose(1, 2)).view(heads, size, count, -1)
        return scores.transpose(0, 1).reshape(size, heads * count, -1)

    def _folded_scores(self, attention: Any, keys: Tensor, placed: Tensor) -> Tensor:
        """The same with each click's own positions (P, N, C)."""
        size, count, _ = keys.shape
        heads, width = attention.num_heads, placed.shape[-1]
        split = _heads(keys, heads) * _scale(attention)
        folded = torch.einsum("phtd,hdc->phtc", split, attention.q_proj.weight.view(heads, -1, width))
        bias = torch.einsum("phtd,hd->pht", split, attention.q_proj.bias.view(heads, -1)).reshape(size, -1, 1)
        folded = folded.reshape(size, heads * count, width).to(self.dtype)
        return torch.baddbmm(bias.to(self.dtype), folded, placed.transpose(1, 2))

    def _folded_outputs(self, attention: Any, values: Tensor) -> Tensor:
        """What each head of each token brings to a position that attends to it alone, (P, H T, C)."""
        size, count, _ = values.shape
        heads = attention.num_heads
        weight = attention.out_proj.weight
        brought = torch.einsum("phtd,chd->phtc", _heads(values, heads), weight.view(len(weight), heads, -1))
        return brought.reshape(size, heads * count, -1).to(self.dtype)

    def _prepare_upscaling(self) -> Callable[[Tensor], Tensor]:
        """The decoder's upscaling as matrix products, channels last: its convolutions have size and stride 2.

        The function makes (P, N, C) to (P, 16 N, C / 8).
        """
        first, norm, activation, second, last = self.sam.mask_decoder.output_upscaling
        if not isinstance(norm, LayerNorm2d):
            raise ValueError("the mask decoder's upscaling is not segment_anything's")

        def matrix(convolution: Any) -> tuple[Tensor, Tensor]:
            weight = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)  # (2 2 out, in)
            return weight.to(self.dtype).contiguous(), convolution.bias.detach().repeat(4).to(self.dtype)

        (weight1, bias1), (weight2, bias2) = matrix(first), matrix(second)

        def upscale(positions: Tensor) -> Tensor:
            size, count, _ = positions.shape
            x = F.linear(positions, weight1, bias1).view(size, count * 4, len(weight1) // 4)
            x = activation(_norm(norm, x))
            return last(F.linear(x, weight2, bias2)).view(size, count * 16, len(weight2) // 4)

        return upscale


def _heads(values: Tensor, heads: int) -> Tensor:
    """(P, T, D) -> (P, H, T, D / H)."""
    size, count, _ = values.shape
    return values.view(size, count, heads, -1).transpose(1, 2)


def _scale(attention: Any) -> float:
    return (attention.internal_dim / attention.num_heads) ** -0.5


def _norm(norm: Any, values: Tensor) -> Tensor:
    """Layer norm over the last axis, in the type of `values`, with the weights and epsilon of `norm`."""
    kind = values.dtype
    return F.layer_norm(values, values.shape[-1:], norm.weight.to(kind), norm.bias.to(kind), norm.eps)
