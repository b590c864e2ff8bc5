"""On a CPU, large maps strip by strip: windows do not see each other before the routed span, nor tokens each other in a
feed-forward, so a strip of them computes what the whole map would, to rounding.

Buffers of 32 MiB and more are what glibc maps and unmaps on every operation, each page of them zeroed first, and what
is larger than a core's cache is read from memory by every operation in turn. Accelerators have neither trouble.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgery.core.host import BlockInfo

STRIP_BYTES = 8 * 2**20
"""Bytes of the widest buffer of a strip. Measured on SAM 2.1 base+ and large: 2 to 16 MiB are alike, 30 are slower."""

_WIDEST = 4
"""The widest buffer of a Hiera block, in channels of its output: the hidden layer of its feed-forward."""


def in_strips(run: Callable[[Tensor], Tensor], tokens: Tensor, dim: int, unit: int, wide: int) -> Tensor:
    """`run` on strips of `tokens` along `dim`, and their outputs joined along it.

    Args:
        run: computes every `unit` of `dim` on its own.
        tokens: on a CPU.
        dim: which axis.
        unit: strips begin at its multiples.
        wide: values that one step along `dim` has in the widest buffer of `run`.
    """
    steps = STRIP_BYTES // (unit * wide * tokens.element_size())
    length = unit * max(1, steps)
    if length >= tokens.shape[dim]:
        return run(tokens)
    return torch.cat([run(strip) for strip in tokens.split(length, dim)], dim)


def block_in_strips(run: Callable[[Tensor], Tensor], feature_map: Tensor, info: BlockInfo) -> Tensor:
    """A windowed block on a map [1, H, W, C] or on pieces [n, s, s, C], `run` being the host's own forward."""
    count, height, width, _ = feature_map.shape
    wide = width * info.dim * _WIDEST
    if count > 1:
        return in_strips(run, feature_map, 0, 1, height * wide)
    if info.window == 0 or (info.pools and info.window % 2):
        return run(feature_map)
    return in_strips(run, feature_map, 1, info.window, wide)
