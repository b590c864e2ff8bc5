"""Which windows one frame computes, from what the video's state knows: the router's rules applied to a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgery.core.evidence import Evidence, saliency_map, union
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.session import State
from surgery.core.values import tensors
from surgery.core.windows import WindowGrid
from surgery.operations.window_routing import router as rules
from surgery.operations.window_routing.reuse import RunMemory
from surgery.operations.window_routing.settings import WindowSettings
from surgery.operations.window_routing.span import renewed_picture
from surgery.operations.window_routing.tiles import TileGrid, TileMemory, piece_urgency


@dataclass(eq=False)
class WindowState(State):
    """What a video remembers of its windows.

    since_dense: routed frames since a dense one. ages: frames since each window was computed. lost: objects whose last
    known score was <= 0. span, tiles: what skipped windows return, as the recipe's span asks. stage4:
    of stage 4, where it is routed. globals: see `GlobalRoute.last` and
    `DenseGlobals.last`, where they are kept. thumbnail: [3, 32, 32] of the last frame. seen: [3, H, W] picture of every
    token when its window was computed.
    """

    since_dense: int = 0
    ages: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    span: RunMemory | None = None
    tiles: TileMemory | None = None
    stage4: RunMemory | None = None
    globals: tuple[Any, ...] | None = None
    thumbnail: Tensor | None = None
    seen: Tensor | None = None

    def removed(self, obj_id: int) -> None:
        """See `State.removed`."""
        self.lost = self.lost - {obj_id}

    def renewed(self, windows: Sequence[int] | None, count: int) -> None:
        """`windows` of `count` were computed; None: all."""
        if windows is None:
            self.ages, self.since_dense = [0] * count, 0
            return
        chosen = set(windows)
        self.ages = [0 if window in chosen else age + 1 for window, age in enumerate(self.ages)]
        self.since_dense += 1


class RoutedFrame:
    """A frame as window routing sees it: what is known of it before it is encoded, and what is chosen.

    settings, grid, host: of the router. context: of the frame; state: its video's; device: where its pixels lie.
    thumbnail: [3, 32, 32] for the scene-cut test; picture: [3, H, W], one mean colour per stage-3 token, for the
    budgets and for the pieces of tiles; each is None when the recipe does not ask for it. windows, reason: that are
    computed, see `Policy`.
    """

    def __init__(
        self, settings: WindowSettings, grid: WindowGrid, host: HostView, context: FrameContext, pixels: Tensor
    ) -> None:
        """Look at normalised pixels [1, 3, S, S]."""
        self.settings, self.grid, self.host, self.context = settings, grid, host, context
        self.state, self.device = context.video.state(WindowState), pixels.device
        self.windows: list[int] | None = None
        self.reason: str | None = None
        self.thumbnail: Tensor | None = None
        self.picture: Tensor | None = None
        if not settings.approximate:
            return
        if settings.refresh.scene_cut is not None:
            self.thumbnail = rules.thumbnail(pixels)
        if settings.budget < 1.0 or settings.stages.early or context.has_picture(grid.height, grid.width):
            self.picture = context.picture(pixels, grid.height, grid.width)

    @property
    def known(self) -> dict[int, Evidence]:
        """Evidence of the objects of the step, on the frame before."""
        assert self.context.step is not None
        return {obj_id: self.context.known[obj_id] for obj_id in self.context.step.objects}

    def must_be_dense(self) -> str | None:
        """Reasons that need no look at the device."""
        step, video, settings, state = self.context.step, self.context.video, self.settings, self.state
        if step is None or step.dense:
            return "prompted frame"
        if video.encoded != step.previous or (settings.refresh.start and not video.continuous):
            return "first frame or jump"
        for obj_id in step.objects:
            evidence = self.context.known.get(obj_id)
            if evidence is None or evidence.frame != step.previous:
                return "object without evidence"
        if settings.refresh.every and state.since_dense >= settings.refresh.every:
            return "refresh interval"
        stages = settings.stages
        for asked, last in (
            (settings.remembers_span, state.span),
            (stages.span == "tiles", state.tiles),
            (stages.stage4 == "routed", state.stage4),
            (stages.globals != "packed", state.globals),
        ):
            if asked and (last is None or any(each.device != self.device for each in tensors(last))):
                return "no last output"
        return None

    def remember(self, chosen: Tensor | None) -> None:
        """The frame is encoded. chosen: int64 [N], tokens of its windows; None: all."""
        state = self.state
        if self.picture is None or state.seen is None or chosen is None:
            state.seen = self.picture
        else:
            state.seen = renewed_picture(state.seen, self.picture, chosen)
        state.thumbnail = self.thumbnail
        state.renewed(self.windows, self.grid.count)

    def ask(self) -> None:
        """Ask for what `by_evidence` will want to know of the device."""
        settings, known, facts = self.settings, self.known.values(), self.context.facts
        facts["touched"] = rules.mask_windows([item.mask for item in known], self.grid, settings.object.dilation)
        if self.thumbnail is not None and self.state.thumbnail is not None:
            facts["cut"] = rules.scene_change(self.thumbnail, self.state.thumbnail.to(self.device))
        if self.picture is not None and settings.budget < 1.0:
            seen = self.picture if self.state.seen is None else self.state.seen.to(self.device)
            facts["changes"] = rules.window_changes(self.picture, seen, self.grid)
        told = [item.told() for item in known]
        if unreliable(settings, [each.score for each in told], [each.seen for each in told]):
            facts["salient"] = self.attended()

    def attended(self) -> Tensor:
        """Windows that hold the prompts' attention, bool [grid.count]; none of a decoder without attention."""
        known = list(self.known.values())
        if not self.host.modules("token_to_image"):
            return torch.zeros(self.grid.count, dtype=torch.bool, device=known[0].mask.device)
        maps = torch.stack([saliency_map(self.host, item) for item in known])
        return rules.salient_windows(maps, self.grid, self.settings.object.saliency_mass)

    def tile_urgency(self, tiles: TileGrid) -> Tensor | None:
        """How urgent each piece is, fp32 [P]; None without extra pieces."""
        memory = self.state.tiles
        if memory is None or self.picture is None or memory.picture is None or memory.ages is None:
            return None
        masks = [item.mask for item in self.context.known.values()]
        near = tiles.near(union(masks), self.settings.object.dilation)
        return piece_urgency(near, tiles.changes(self.picture, memory.picture), memory.ages)


Policy = Callable[[RoutedFrame], tuple[list[int] | None, str | None]]
"""Windows to compute on a frame that may be routed, or None for all, and the reason for all or for more than the
budget. Called when the first block wants to know; by then the frame has asked."""


def by_evidence(frame: RoutedFrame) -> tuple[list[int] | None, str | None]:
    """The recipe's own rules, see `Policy`."""
    settings, context, known = frame.settings, frame.context, frame.known
    told = [item.told() for item in known.values()]
    values = context.read()
    seen = Seen(
        [value > 0 for value in values["touched"]],
        [each.score for each in told],
        values.get("changes"),
        values.get("cut", [0.0])[0] if settings.refresh.scene_cut is not None else None,
        [each.doubt for each in told if each.doubt is not None],
    )

    def salient() -> list[bool]:
        if "salient" not in values:
            # The mask has pixels, and no window has them.
            context.facts["salient"] = frame.attended()
            values.update(context.read())
        return [value > 0 for value in values["salient"]]

    return by_rules(settings, frame.state, known, seen, salient)


@dataclass(frozen=True)
class FixedWindows:
    """The same windows on every frame that may be routed: speed does not depend on which windows are kept.

    timed: do the router's work all the same, to be timed with it.
    """

    windows: tuple[int, ...]
    timed: bool = False

    def __call__(self, frame: RoutedFrame) -> tuple[list[int] | None, str | None]:
        """See `Policy`."""
        if self.timed:
            by_evidence(frame)
        return sorted(self.windows), None


def unreliable(settings: WindowSettings, scores: Iterable[float], seen: Iterable[bool]) -> bool:
    """Whether the masks of the frame before cannot be relied on. seen: whether anything of them is there."""
    return not any(seen) or any(not score >= settings.object.score_gate for score in scores)


@dataclass(frozen=True)
class Seen:
    """What is known of a frame's windows before it is encoded.

    touched: by an object, each window. scores: of the objects. changes: see `window_changes`; None without a budget.
    cut: change of the whole picture; None without a test. doubts: of the objects' masks, see `doubt_of`.
    """

    touched: Sequence[bool]
    scores: Sequence[float]
    changes: Sequence[float] | None
    cut: float | None
    doubts: Sequence[float] = ()


def by_rules(
    settings: WindowSettings, state: WindowState, objects: Iterable[int], seen: Seen, salient: Callable[[], list[bool]]
) -> tuple[list[int] | None, str | None]:
    """See `Policy`.

    salient: windows that hold the prompts' attention; asked for only where the masks cannot be relied on.
    """
    cut = settings.refresh.scene_cut
    if cut is not None and seen.cut is not None and not seen.cut <= cut:
        return None, "scene cut"
    if lost_object(settings, state, objects, seen.scores):
        return None, "lost object"
    taken = list(seen.touched)
    if unreliable(settings, seen.scores, taken):
        taken = [a or b for a, b in zip(taken, salient(), strict=True)]
    if seen.changes is None:
        windows, more = rules.allot(taken, state.ages, settings.rolling, settings.round_to, settings.fill), None
    else:
        limit = settings.object.unsure
        windows, more = rules.within_budget(
            taken, seen.touched, state.ages, seen.changes, budget=settings.budget, rolling=settings.rolling,
            round_to=settings.round_to, fill=settings.fill, max_wait=settings.object.max_wait,
            background=settings.object.background,
            unsure=limit is not None and any(not doubt <= limit for doubt in seen.doubts),
        )  # fmt: skip
    if len(windows) == len(taken):
        return None, more or "every window needed"
    return windows, more


def lost_object(settings: WindowSettings, state: WindowState, objects: Iterable[int], scores: Sequence[float]) -> bool:
    """Whether an object whose score fell to 0 or less asks for a dense frame; `state.lost` is brought up to date."""
    absent = {obj_id for obj_id, score in zip(objects, scores, strict=True) if not score > 0}
    newly = absent - state.lost
    state.lost = absent
    when = settings.refresh.lost
    return bool(absent) if when == "always" else bool(newly) and when == "once"
