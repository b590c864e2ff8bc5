"""What hosts call by different names in modules that are the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from surgery.core.attention import Projections
from surgery.core.pictures import TwoWayLayer


@dataclass(frozen=True)
class Names:
    """Attributes of a host's modules.

    heads: the number of heads of an attention. output: its last projection. norm: the norms of a layer begin so.
    stride: by which an encoder block pools its queries. memory: what memory attention is given, namely the features of
    the frame, the memory, the position codes of both, and how many rows of it are object pointers.
    """

    heads: str
    output: str
    norm: str
    stride: str
    memory: tuple[str, str, str, str, str]

    def projections(self, attention: Any) -> Projections:
        """Those of an attention outside of the encoder."""
        output, heads = getattr(attention, self.output), getattr(attention, self.heads)
        return Projections(attention.q_proj, attention.k_proj, attention.v_proj, output, heads)

    def norm_of(self, layer: Any, which: int | str) -> Any:
        """A norm of a layer, by its number or whatever else its name ends in."""
        return getattr(layer, f"{self.norm}{which}")

    def two_way(self, layer: Any) -> TwoWayLayer:
        """A layer of the mask decoder's transformer."""
        return TwoWayLayer(
            self.projections(layer.self_attn),
            self.projections(layer.cross_attn_token_to_image),
            self.projections(layer.cross_attn_image_to_token),
            tuple(self.norm_of(layer, which) for which in (1, 2, 3, 4)),
            layer.mlp,
            not layer.skip_first_layer_pe,
        )


def arguments(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of a host's method is given, by the names of its parameters."""
    return inspect.signature(method).bind(*args, **kwargs).arguments
