"""The two-way transformer with the image's projections folded into the few tokens of a prompt.

A prompt has N tokens and an attention H heads: N * H rows are fewer than the channels that keys, values and queries of
every image token are projected to. What the first layer projects is the same for all prompts, and computed once.
The same numbers as the host's, but for rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.attention import Projections
from surgery.core.pictures import DecoderParts


def transform(parts: DecoderParts, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As `DecoderParts.transform`, for one image [1, C, h, w] shared by all prompts [B, N, C]."""
    codes, flat = tokens, positions[0].flatten(1).t()
    shared: Tensor = image[0].flatten(1).t().contiguous()
    seen: Tensor | None = None
    for layer in parts.layers:
        first, second, third, fourth = layer.norms
        coded = tokens + codes if layer.coded else tokens
        attended = _self(layer.self_attention, coded, tokens)
        tokens = first(tokens + attended if layer.coded else attended)
        tokens = second(tokens + _look(layer.to_image, tokens + codes, shared, seen, flat))
        tokens = third(tokens + layer.mlp(tokens))
        seen = fourth(_shown(layer.to_tokens, tokens + codes, tokens, shared, seen, flat))
    assert seen is not None
    tokens = parts.final_norm(tokens + _look(parts.final, tokens + codes, shared, seen, flat))
    return tokens, seen


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, H * d] -> [B, H, N, d]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _self(own: Projections, coded: Tensor, tokens: Tensor) -> Tensor:
    query, key, value = (
        _heads(project(each), own.heads)
        for project, each in ((own.query, coded), (own.key, coded), (own.value, tokens))
    )
    return own.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _scores(rows: Tensor, projection: torch.nn.Module, seen: Tensor, positions: Tensor) -> Tensor:
    """Products of `rows` [B, H, N, d] with the projection of image plus positions, [B, H, N, T]."""
    heads, size = rows.shape[1], rows.shape[3]
    placed = projection(positions).unflatten(-1, (heads, size)).permute(1, 2, 0)
    folded = rows @ projection.weight.unflatten(0, (heads, size))  # type: ignore[operator]
    found = torch.baddbmm((rows @ placed).flatten(1, 2), folded.flatten(1, 2), seen.transpose(1, 2))
    return found.unflatten(1, rows.shape[1:3])


def _look(own: Projections, coded: Tensor, shared: Tensor, seen: Tensor | None, positions: Tensor) -> Tensor:
    """Tokens attend to the image: [B, N, C]."""
    query = _heads(own.query(coded), own.heads)
    count, heads, rows, size = query.shape
    if seen is None:
        key, value = (
            each.unflatten(-1, (heads, size)).transpose(0, 1)[None]
            for each in (own.key(shared + positions), own.value(shared))
        )
        together = query.transpose(0, 1).reshape(1, heads, count * rows, size)
        mixed = F.scaled_dot_product_attention(together, key, value)[0].unflatten(1, (count, rows)).permute(1, 2, 0, 3)
    else:
        weights = _scores(query * size**-0.5, own.key, seen, positions).softmax(-1)
        mean = (weights.flatten(1, 2) @ seen).unflatten(1, (heads, rows))
        projection: Tensor = own.value.weight.unflatten(0, (heads, size))  # type: ignore[operator]
        mixed = (mean @ projection.transpose(1, 2)).transpose(1, 2) + own.value.bias.unflatten(0, (heads, size))  # type: ignore[operator]
    return own.output(mixed.flatten(2))


def _shown(
    own: Projections, coded: Tensor, tokens: Tensor, shared: Tensor, seen: Tensor | None, positions: Tensor
) -> Tensor:
    """The image [B, T, C] after it attended to the tokens, its old value added."""
    key, value = _heads(own.key(coded), own.heads), _heads(own.value(tokens), own.heads)
    count, heads, _, size = key.shape
    key = key * size**-0.5
    if seen is None:
        query = own.query(shared + positions).unflatten(-1, (heads, size)).permute(1, 2, 0)
        weights = (key @ query).softmax(2)
        seen = shared.expand(count, -1, -1)
    else:
        weights = _scores(key, own.query, seen, positions).softmax(2)
    # The weights of a head sum to one, so that the heads share the bias.
    projection: Tensor = own.output.weight.t().unflatten(0, (heads, size))  # type: ignore[operator]
    shown = value @ projection + own.output.bias / heads  # type: ignore[operator]
    return torch.baddbmm(seen, weights.flatten(1, 2).transpose(1, 2), shown.flatten(1, 2))
