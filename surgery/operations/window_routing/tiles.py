"""Tile routing: a skipped stage-3 window is skipped from the first block on.

Every block before the span is windowed, and its windows nest in a stage-3 window. What nests is a *piece*: the
smallest square that holds whole windows of every one of those blocks (SAM 2: 8x8 tokens of stage 1, 4x4 of stage 2, 2x2
of stage 3). A tile is a stage-3 window and the pieces under it, so the stock blocks, given a batch of pieces as if they
were small images, compute exactly what they compute in the whole map.

Pieces of skipped windows may be computed as well: where an object is, the decoder reads the maps of stages 1 and 2 at
full resolution, and the span's input there is what the shortcut corrects a skipped window with.

Between blocks pieces travel as [n, s, s, C], row-major by place. At the end of a stage, whose map the decoder reads,
the whole map goes on: computed pieces new, the others reuse what they had when last computed, see `matching`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.constants import constant, steps
from surgery.core.early import sent
from surgery.core.evidence import widened
from surgery.core.windows import Packing, WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.matching import Matching, compared, matching
from surgery.operations.window_routing.reuse import RunMemory, blank, renewed_keys
from surgery.operations.window_routing.router import AGE_WEIGHT
from surgery.operations.window_routing.shortcut import Shortcut


@dataclass(eq=False)
class TileMemory:
    """What a video remembers of its tiles.

    span: of the span, every token when its window was computed; matched by the last stage's output under the token.
    levels: of every stage that ends before the span, [H_i * W_i, C_i], every token when its piece was computed. With
    extra pieces, else None: branch, [H * W, C], what the shortcut then made of every token's span input; picture: fp32
    [3, H, W], the frame when each token's piece was computed; ages: fp32 [P], frames since.
    """

    span: RunMemory
    levels: tuple[RunMemory, ...]
    branch: Tensor | None = None
    picture: Tensor | None = None
    ages: Tensor | None = None


@dataclass(eq=False)
class TileRoute:
    """The tiles of one frame: index tensors in, stage outputs out.

    across: pieces on a side of the map. pieces: int64 [n], rising ids `row * across + column` of those that are
    computed; None on a dense frame, where outputs are noted and nothing else. lines: int64 [n, s] by s, the side of a
    piece in tokens of a map: which lines of s tokens are the pieces'. matching: by s likewise, of the other pieces;
    empty where there are none. tokens: int64 [n * s * s], span tokens of the pieces. order: int64 [N], where the span's
    chosen tokens lie among `tokens`; None when the span is entered with a whole map. memory: see `TileMemory`. kept:
    `TileMemory.levels` after this frame. entering: [1, H, W, C], what the stage in progress was given. now: [H * W, D],
    what the span's tokens are matched by. branch: [n * s * s, C], the shortcut's output for `tokens`, where there are
    extra pieces.
    """

    across: int
    pieces: Tensor | None = None
    lines: dict[int, Tensor] = field(default_factory=dict)
    matching: dict[int, Matching] = field(default_factory=dict)
    tokens: Tensor | None = None
    order: Tensor | None = None
    memory: TileMemory | None = None
    kept: list[RunMemory] = field(default_factory=list)
    entering: Tensor | None = None
    now: Tensor | None = None
    branch: Tensor | None = None

    def gather(self, feature_map: Tensor) -> Tensor:
        """The computed pieces of a map: [1, H, W, C] -> [n, s, s, C] with s = H / across."""
        side, channels = feature_map.shape[1] // self.across, feature_map.shape[-1]
        lines = feature_map.reshape(-1, side * channels)
        return lines.index_select(0, self.lines[side].flatten()).reshape(-1, side, side, channels)

    def compared(self, side: int) -> Tensor:
        """What tokens of a map of `side` are matched by: [side * side, D]."""
        assert self.entering is not None
        return compared(self.entering, self.entering.shape[1] // side)

    def merge(self, pieces: Tensor, level: int) -> Tensor:
        """Computed pieces [n, s, s, C] of the stage that ends as number `level` -> its whole map [1, H, W, C]."""
        assert self.memory is not None
        last, side = self.memory.levels[level], pieces.shape[1]
        whole, now = side * self.across, self.compared(side * self.across)
        old = last.reused.to(pieces.dtype)
        merged = kept = self._renewed(old, pieces)
        if side in self.matching:
            others = self.matching[side]
            moved = others.reused(now.index_select(0, others.own), last.entering, old)
            merged = kept.index_copy(0, others.own, moved.to(kept.dtype))
        entering = renewed_keys(self._renewed, last.entering, self.gather(now.reshape(1, whole, whole, -1)))
        self.kept.append(RunMemory(kept, entering))
        self.entering = merged.reshape(1, whole, whole, -1)
        return self.entering

    def _renewed(self, last: Tensor, pieces: Tensor) -> Tensor:
        """`last` [H * W, C] with computed pieces [n, s, s, C]."""
        _, side, _, channels = pieces.shape
        lines, new = last.reshape(-1, side * channels), pieces.reshape(-1, side * channels)
        return lines.index_copy(0, self.lines[side].flatten(), new).reshape(last.shape)

    def note(self, feature_map: Tensor) -> None:
        """Keep the output [1, H, W, C] of a stage that ends on a dense frame."""
        # Hosts return maps of any layout; one layout keeps compiled graphs from multiplying.
        flat = feature_map.reshape(-1, feature_map.shape[-1]).contiguous()
        self.kept.append(RunMemory(flat, self.compared(feature_map.shape[1])))
        self.entering = feature_map

    def enter(
        self, feature_map: Tensor, chosen: Tensor, rest: Matching | None, shortcut: Shortcut
    ) -> tuple[Tensor, Tensor | None]:
        """The span's input and what its skipped tokens return.

        Args:
            feature_map: computed pieces [n, s, s, C], or the whole map [1, H, W, C] when `order` is None.
            chosen: int64 [N], map ids of the tokens that are computed. rest: of the windows that are skipped.
            shortcut: pointwise; used only with extra pieces.

        Returns:
            Chosen tokens [N, C], in the order of `chosen`, and the skipped tokens' span output, in that of `rest`.
        """
        assert self.memory is not None and self.tokens is not None
        memory, flat = self.memory, feature_map.reshape(-1, feature_map.shape[-1])
        side = math.isqrt(memory.span.reused.shape[0])
        self.now, skipped, last = self.compared(side), None, memory.branch
        if last is not None:
            self.branch = shortcut(flat if self.order is not None else flat.index_select(0, self.tokens))
        if rest is not None:
            now, values = self.now.index_select(0, rest.own), memory.span.reused
            if last is None or self.branch is None:
                skipped = rest.reused(now, memory.span.entering, values)
            else:
                # Of a token in an extra piece the shortcut's output is known, of others it is reused as well.
                both = rest.reused(now, memory.span.entering, torch.cat([values, last], -1))
                values, last = both.tensor_split(2, -1)
                known = self.branch.new_zeros(self.now.shape[0], 1).index_fill(0, self.tokens, 1)
                fresh = self.branch.new_zeros(last.shape[-1]).expand(self.now.shape[0], -1)
                fresh = fresh.index_copy(0, self.tokens, self.branch).index_select(0, rest.own)
                skipped = values + torch.where(known.index_select(0, rest.own) > 0, fresh, last.to(fresh.dtype))
        return flat.index_select(0, chosen if self.order is None else self.order), skipped


class TileGrid:
    """Geometry of the pieces under the windows of a square `grid`.

    Args:
        grid: the stage-3 windows.
        side: side of a piece in stage-3 tokens, see `piece_side`.
        levels: (side, channels) of the output of every stage that ends before the span.
        whole: whether the span is entered with a whole map, because a stage ends right before it.
    """

    def __init__(self, grid: WindowGrid, side: int, levels: Sequence[tuple[int, int]], whole: bool = False) -> None:
        self.grid, self.levels, self.whole = grid, tuple(levels), whole
        self.across = grid.width // side
        places = np.arange(self.across) * side // grid.window
        self._window_of = (places[:, None] * grid.cols + places[None]).reshape(-1)
        self._grids = {each // self.across: WindowGrid(each, each, each // self.across) for each, _ in self.levels}

    def pieces(self, windows: Sequence[int]) -> np.ndarray:
        """Ids, `row * across + column`, of the pieces under `windows`; int64 [n], rising."""
        return np.flatnonzero(np.isin(self._window_of, np.asarray(windows, dtype=np.int64)))

    def blank(self, channels: int, device: torch.device, dtype: torch.dtype, extra: bool = False) -> TileMemory:
        """A memory of zeros, for a span of `channels`, with what extra pieces need: what counting operations needs."""

        # The patch embedding is as wide as the first stage.
        below = [self.levels[0][1], *(width for _, width in self.levels)]
        levels = tuple(
            blank(side * side, width, under, device, dtype)
            for (side, width), under in zip(self.levels, below, strict=False)
        )
        span = blank(self.grid.tokens, channels, below[-1], device, dtype)
        return TileMemory(span, levels, torch.zeros_like(span.reused) if extra else None)

    @property
    def count(self) -> int:
        """Pieces of the map, P."""
        return self.across**2

    def watch(self) -> TileRoute:
        """The route of a dense frame."""
        return TileRoute(self.across)

    def route(
        self, windows: Sequence[int], device: torch.device, memory: TileMemory, urgency: Tensor | None = None,
        count: int = 0,
    ) -> TileRoute:  # fmt: skip
        """The route of a frame that computes the tiles of `windows` (at least one).

        Args:
            windows: stage-3 windows computed.
            device: where the maps lie.
            memory: of the video.
            urgency: fp32 [P], finite; with it, further pieces are computed, the most urgent first.
            count: pieces computed in all, as far as those under `windows` leave room; as many as full windows have
                where the grid fills windows up.
        """
        certain = self.pieces(windows)
        pieces, side = sent(certain, device), self.grid.width // self.across
        if self.grid.filled:
            count = min(self.count, max(count, len(windows) * (self.grid.window // side) ** 2))
        if urgency is not None and count > len(certain):
            # Chosen on the device: how urgent a piece is need not be known to the host.
            pieces = urgency.index_fill(0, pieces, torch.inf).topk(count, sorted=False).indices.sort().values
        tokens = self._under(side, device).index_select(0, pieces).flatten()
        order = None
        if not self.whole:
            # Of other tokens nobody asks.
            place = torch.empty(self.grid.tokens, dtype=torch.int64, device=device)
            place = place.index_copy(0, tokens, steps(self.grid.tokens, device)[: tokens.shape[0]])
            order = place.index_select(0, sent(self.grid.token_ids(windows), device))
        sides = sorted(self._grids)
        # Not flattened: a compiled graph sees one n in all of them, where products of it would be sizes of their own.
        lines = {each: self._lines(each, device).index_select(0, pieces) for each in sides}
        route = TileRoute(self.across, pieces, lines, tokens=tokens, order=order, memory=memory)
        if len(pieces) < self.count:
            taken = torch.zeros(self.count, dtype=torch.int8, device=device).index_fill(0, pieces, 1)
            others = taken.argsort(stable=True)[: self.count - len(pieces)]
            route.matching = {each: self._matching(each, others) for each in sides}
        return route

    def _matching(self, side: int, pieces: Tensor) -> Matching:
        """Of pieces of `side` tokens on a map."""
        own = self._under(side, pieces.device).index_select(0, pieces).flatten()
        return matching(self._grids[side], Packing(pieces, None, side * side), own)

    def _lines(self, side: int, device: torch.device) -> Tensor:
        """int64 [P, s]: a map of H rows is H * across lines of `side` tokens, `side` of them to a piece."""

        def make() -> Tensor:
            place = torch.arange(self.count, device=device)[:, None]
            rows = place // self.across * side + torch.arange(side, device=device)
            return rows * self.across + place % self.across

        return constant(("lines", self.across, side), device, make)

    def _under(self, side: int, device: torch.device) -> Tensor:
        """int64 [P, s * s]: the tokens of every piece of `side` tokens."""

        def make() -> Tensor:
            lines = self._lines(side, device)
            return (lines[:, :, None] * side + torch.arange(side, device=device)).flatten(1)

        return constant(("under", self.across, side), device, make)

    def near(self, mask: Tensor, dilation: int) -> Tensor:
        """Pieces a low-resolution mask touches, dilated by an odd kernel in its pixels: bool [h, w] -> bool [P]."""
        cell = (mask.shape[-2] // self.across, mask.shape[-1] // self.across)
        return F.max_pool2d(widened(mask, dilation)[None, None], cell, cell).flatten() > 0

    def changes(self, current: Tensor, seen: Tensor) -> Tensor:
        """Mean absolute change of the picture in each piece, see `window_changes`: fp32 [3, H, W] twice -> fp32 [P]."""
        return F.adaptive_avg_pool2d((current - seen).abs().mean(0, keepdim=True), self.across).flatten()


BACKGROUND_WEIGHT = 0.2
"""What a piece's change counts for when no object is near: its stage 1 and 2 maps matter at object borders."""


def piece_urgency(near: Tensor, changes: Tensor, ages: Tensor) -> Tensor:
    """How much each piece wants to be computed: fp32 [P].

    Args:
        near: bool [P], whether an object is there. changes: see `TileGrid.changes`. ages: frames since last computed.
    """
    wanted = changes + AGE_WEIGHT * (ages + 1)
    return torch.where(near, wanted, wanted * BACKGROUND_WEIGHT)


def piece_side(blocks: Sequence[tuple[int, bool]], grid: WindowGrid) -> int:
    """Side of a piece in stage-3 tokens.

    Args:
        blocks: (window in tokens of the block's input, whether it pools 2x2) of every block before the span, in order.
        grid: the stage-3 windows.

    Raises:
        UnsupportedModelError: a block before the span is global, or its windows do not nest in stage-3 windows or do
            not fill the map.
    """
    scale = 2 ** sum(pools for _, pools in blocks)
    side = 1
    for index, (window, pools) in enumerate(blocks):
        if window == 0:
            raise UnsupportedModelError(
                f"encoder block {index} has global attention before the routed span: tiles cannot be skipped from the "
                "first block on; use span: stage3"
            )
        if pools and window % 2:
            found = f"encoder block {index} pools 2x2 in windows of {window} tokens"
            raise UnsupportedModelError(f"{found}, expected an even window; use span: stage3")
        side = math.lcm(side, window // math.gcd(window, scale))
        scale //= 2 if pools else 1
    if grid.window % side or grid.width % side or grid.height % side:
        windows = ", ".join(str(window) for window, _ in blocks)
        raise UnsupportedModelError(
            f"the windows of blocks 0..{len(blocks) - 1} ({windows} tokens) make pieces of {side} stage-3 tokens, "
            f"which do not divide the stage-3 window of {grid.window} and the map of {grid.height}x{grid.width}; "
            "use span: stage3"
        )
    return side
