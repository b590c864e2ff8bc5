"""Where operations run: the neutral seams, and the classes that hosts put in front of their own modules there.

A seam hands an operation the context of the call, what the module was given, and a function that goes on with the next
operation and at last with the host's own module. Tensors go in and out:

* `encode(context, pixels, proceed)`: one frame [1, 3, S, S] through the encoder, to the host's own features.
* `block(context, block, tokens, proceed)`: an encoder block by number; see `BlockCall`.
* `memory_attention(context, call, proceed)`: of one object; see `MemoryCall`.
* `self_attention`, `cross_attention(context, call, proceed)`: of a layer of it; see `AttentionCall`.
* `part(part, module, args, kwargs, proceed)`: a whole part by name, whatever the host gives it, in a frame or not;
  `forward` the same inside of its hooks.
* `code(context, module, key, make)`: a position code that no picture is in.
* `strip(context, tokens, run)`: a feed-forward that works token by token.
* `linear(number, layer, tokens, proceed)`: an `nn.Linear` of the encoder or of memory attention, in a frame or not.
* `stored(surgery, handle, frame, objects)`: the memories of a frame were stored.

A host says which modules lie at a seam (`HostView.modules`) and inherits from the class here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.attention import AttentionCall, ConditionedBy, MemoryCall
from surgery.core.patching import Patched
from surgery.core.surgery import Run, Site

PART_SEAMS = ("part", "forward")


def passed(runs: tuple[Run, ...], given: tuple[Any, ...], what: tuple[Any, ...], proceed: Callable[..., Any]) -> Any:
    """`proceed(*what)` through `runs`, the first outermost: each is called with (*given, *what, what goes on)."""
    if not runs:
        return proceed(*what)

    def further(*what: Any) -> Any:
        return passed(runs[1:], given, what, proceed)

    return runs[0](*given, *what, further)


class BlockCall:
    """An encoder block in one call: its sub-modules by their common names, for tokens [n, h, w, C].

    block: the host's. number: of the block.
    """

    def __init__(self, block: Any, number: int, kwargs: dict[str, Any]) -> None:
        self.block, self.number, self._kwargs = block, number, kwargs

    def norm1(self, tokens: Tensor) -> Tensor:
        """Before attention."""
        return self.block._norm1(tokens)

    def attend(self, windows: Tensor, places: Tensor | None = None) -> Tensor:
        """[n, h, w, C] -> attention output by the host's own module, which pools where the block does.

        places: int64 [h * w], where the tokens lie on the map; None: they are whole windows, or the whole map.
        """
        return self.block._attend(windows, places, **self._kwargs)

    def qkv(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Queries, keys and values of normed tokens, N in all, as attention compares them: [N, 3, heads, d]. places: as
        in `attend`."""
        return self.block._qkv(tokens, places)

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention output [N, C] of queries [N, heads, d] over keys and values [M, heads, d]."""
        q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.block._out(mixed[0].transpose(0, 1).flatten(1))

    def project(self, tokens: Tensor) -> Tensor:
        """The residual's projection where the block changes the width."""
        return self.block.proj(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Its norm included."""
        return self.block._feed_forward(tokens)


class Block(Patched):
    """An encoder block. A host says what its norms and the inside of its attention are; all else has one name, unless
    it says otherwise. places: see `BlockCall.attend`; blocks without positions of their own need none."""

    _surgery: Site

    def _norm1(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _norm2(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _attend(self, windows: Tensor, places: Tensor | None, **kwargs: Any) -> Tensor:
        own: Any = self
        return own.attn(windows, **kwargs)

    def _qkv(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        own: Any = self
        return own.mlp(self._norm2(tokens))

    def _out(self, mixed: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        site, forward = self._surgery, super().forward  # type: ignore[misc]
        context = site.context
        if context is None:
            return forward(hidden_states, **kwargs)
        call = BlockCall(self, site.number, kwargs)
        return passed(site.runs["block"], (context, call), (hidden_states,), lambda tokens: forward(tokens, **kwargs))


class Attention(Patched):
    """A self- or cross-attention of memory attention; hosts say what a call was given."""

    _surgery: Site

    def _call(self, call: AttentionCall, stock: Callable[[], Tensor]) -> Tensor:
        """[N, C] of one object. stock: runs the host's own module."""
        site = self._surgery
        context = site.context
        assert context is not None

        def run(call: AttentionCall) -> Tensor:
            return call.attend() if call.explicit else stock()

        return passed(next(iter(site.runs.values())), (context,), (call,), run)


class TokenToImage(Patched):
    """Token-to-image attention of the mask decoder: what it reads is noted, then it runs as it is."""

    _surgery: Site

    def _note(self, query: Tensor, key: Tensor) -> None:
        site = self._surgery
        context = site.context
        if context is not None and context.decoder_inputs is not None:
            # A list that grew would be another list to a compiled graph on every call.
            context.decoder_inputs[site.number] = (query, key)


class PositionCode(Patched):
    """A module that makes a position code."""

    _surgery: Site

    def _code(
        self, key: tuple[Any, ...], stock: Callable[[], Tensor], make: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """key: all that the code depends on besides the module and its weights. make: a shorter way to the same."""
        if torch.compiler.is_compiling():  # first of all: a graph would be made anew for every session it looked at
            return stock()
        site = self._surgery
        if not site.enabled:
            return stock()
        runs = site.runs.get("code", ())
        return passed(runs, (site.context, self), (key, make or stock), lambda key, make: make())


class FeedForward(Patched):
    """A module with a feed-forward that works token by token."""

    _surgery: Site

    def _feed(self, tokens: Tensor, hidden: int, run: Callable[[Tensor], Tensor]) -> Tensor:
        """hidden: channels of its widest layer. tokens: [B, T, C]."""
        site = self._surgery
        if torch.compiler.is_compiling() or site.context is None:
            return run(tokens)
        return passed(site.runs["strip"], (site.context, hidden), (tokens, run), lambda tokens, run: run(tokens))


class LinearLayer(Patched):
    """An `nn.Linear` of any host."""

    _surgery: Site

    def forward(self, input: Tensor) -> Tensor:
        site = self._surgery
        return passed(site.runs.get("linear", ()), (site.index, self), (input,), super().forward)  # type: ignore[misc]


class ModelPart(Patched):
    """A part of the model. `__call__` is outside of its hooks and of a compiled forward, which finds what was set."""

    # The site. Not by its type: transformers evaluates the annotations of its models' classes.
    _surgery: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("part", super().__call__, args, kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("forward", super().forward, args, kwargs)  # type: ignore[misc]

    def _run(self, seam: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site = self._surgery
        runs = site.runs.get(seam, ())
        if not runs or not site.enabled or site.surgery.plain:
            return own(*args, **kwargs)
        return passed(runs, (site.index, self), (args, kwargs), lambda args, kwargs: own(*args, **kwargs))


class MemoryAttentionPart(ModelPart):
    """Memory attention; hosts say what a call was given."""

    def _conditioned(self, call: MemoryCall, run: ConditionedBy) -> Any:
        """One call. run: the host's own memory attention."""
        site = self._surgery
        context = site.context
        if context is None:
            return run(call)
        return passed(site.runs.get("memory_attention", ()), (context,), (call,), run)
