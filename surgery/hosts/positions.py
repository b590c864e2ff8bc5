"""Position codes of the image encoder, which the hosts make anew on every frame though no picture is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgery.graft import Graft
from surgery.hosts.base import Binding
from surgery.retrieval.shared import cast_of
from surgery.session import TrunkCode

MOST_CODES = 8
"""Neck codes kept for one model; a neck has four levels."""


class Trunk(Graft):
    """Hiera, which interpolates its position code to the map and tiles it. A session keeps it."""

    _surgery: Binding

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        if torch.compiler.is_compiling():  # first of all: a graph would be made anew for every session it looked at
            return super()._get_pos_embed(hw)  # type: ignore[misc]
        binding = self._surgery
        own: tuple[Tensor, ...] = (self.pos_embed, self.pos_embed_window)  # type: ignore[attr-defined]
        pending = binding.pending if binding.enabled else None
        if pending is None or torch.is_grad_enabled() or any(weight.is_inference() for weight in own):
            return super()._get_pos_embed(hw)  # type: ignore[misc]
        state = pending[0]
        weights = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in own)
        made_for = (int(hw[0]), int(hw[1]), cast_of(own[0]), weights)
        if state.trunk_code is None or state.trunk_code.made_for != made_for:
            held = tuple(weight.detach() for weight in own)
            state.trunk_code = TrunkCode(made_for, held, super()._get_pos_embed(hw))  # type: ignore[misc]
        return state.trunk_code.code


class NeckCodes(Graft):
    """The sine codes of the neck's levels; hosts say how they are asked for."""

    _surgery: Binding

    def _spared(self) -> bool:
        return not torch.compiler.is_compiling() and self._surgery.enabled

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        codes = self._surgery.codes
        if key not in codes:
            code = make()
            if type(code) is not Tensor:
                return code  # a fake tensor, while operations are counted, must not stay
            while len(codes) >= MOST_CODES:
                codes.pop(next(iter(codes)))
            codes[key] = code
        return codes[key]
