"""Which windows one frame computes, from what the video's state knows: the router's rules applied to a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from surgery.core.evidence import Evidence, saliency_map, union
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.session import State
from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.router import (
    allot,
    mask_windows,
    salient_windows,
    scene_change,
    thumbnail,
    window_changes,
    within_budget,
)
from surgery.operations.window_routing.settings import WindowSettings
from surgery.operations.window_routing.span import SpanMemory
from surgery.operations.window_routing.tiles import TileGrid, TileMemory, piece_urgency


@dataclass(eq=False)
class WindowState(State):
    """What a video remembers of its windows.

    since_dense: routed frames since a dense one. ages: frames since each window was computed. lost: objects whose last
    known score was <= 0. span, tiles: what skipped windows return, as the recipe's span asks. stage4: [1, H, W, C]
    output of stage 4, every window when last computed, where stage 4 is routed. globals: see `GlobalRoute.last` and
    `DenseGlobals.last`, where they are kept. thumbnail: [3, 32, 32] of the last
    frame. seen: [3, H, W] picture of every token when its window was computed.
    """

    since_dense: int = 0
    ages: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    span: SpanMemory | None = None
    tiles: TileMemory | None = None
    stage4: Tensor | None = None
    globals: tuple[Tensor, ...] | None = None
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


@dataclass(frozen=True, eq=False)
class FramePreview:
    """What is seen of a frame before it is encoded.

    thumbnail: [3, 32, 32] for the scene-cut test. picture: [3, H, W], one mean colour per stage-3 token, for the
    budgets and for the pieces of tiles. Each is None when the recipe does not ask for it.
    """

    thumbnail: Tensor | None = None
    picture: Tensor | None = None

    @classmethod
    def at(cls, pixels: Tensor, settings: WindowSettings, grid: WindowGrid, context: FrameContext) -> FramePreview:
        """Look at normalised pixels [1, 3, S, S]."""
        small = thumbnail(pixels) if settings.refresh.scene_cut is not None else None
        if settings.budget >= 1.0 and not settings.stages.early and not context.has_picture(grid.height, grid.width):
            return cls(small)
        return cls(small, context.picture(pixels, grid.height, grid.width))

    def remembered(self, seen: Tensor | None, chosen: Tensor | None) -> Tensor | None:
        """The picture of every token when its window was last computed, after those of the tokens `chosen` were; int64
        [N], None: all."""
        if self.picture is None or chosen is None or seen is None:
            return self.picture
        now = self.picture.flatten(1).index_select(1, chosen)
        return seen.flatten(1).index_copy(1, chosen, now).reshape(seen.shape)


class Policy(Protocol):
    """Chooses the windows of a frame."""

    def __call__(
        self, settings: WindowSettings, grid: WindowGrid, host: HostView, context: FrameContext,
        state: WindowState, preview: FramePreview, device: torch.device,
    ) -> tuple[list[int] | None, str | None]:  # fmt: skip
        """Windows to compute on this frame, or None for all, and the reason for all or for more than the budget.

        Called when the first block wants to know; by then `ask` has asked, unless the frame `must_be_dense`.
        """


def by_evidence(
    settings: WindowSettings, grid: WindowGrid, host: HostView, context: FrameContext, state: WindowState,
    preview: FramePreview, device: torch.device,
) -> tuple[list[int] | None, str | None]:  # fmt: skip
    """The recipe's own rules, see `Policy`."""
    reason = must_be_dense(settings, context, state, device)
    if reason is not None:
        return None, reason
    assert context.step is not None
    objects = context.step.objects
    evidence = [context.known[obj_id] for obj_id in objects]
    told = [item.told() for item in evidence]
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
            context.facts["salient"] = attended(settings, grid, host, evidence)
            values.update(context.read())
        return [value > 0 for value in values["salient"]]

    return by_rules(settings, state, objects, seen, salient)


def ask(
    settings: WindowSettings, grid: WindowGrid, host: HostView, context: FrameContext, state: WindowState,
    preview: FramePreview,
) -> None:  # fmt: skip
    """Ask for what `by_evidence` will want to know of the device."""
    assert context.step is not None
    evidence = [context.known[obj_id] for obj_id in context.step.objects]
    facts, small = context.facts, preview.thumbnail
    facts["touched"] = mask_windows([item.mask for item in evidence], grid, settings.object.dilation)
    if small is not None and state.thumbnail is not None:
        facts["cut"] = scene_change(small, state.thumbnail.to(small.device))
    if preview.picture is not None and settings.budget < 1.0:
        seen = preview.picture if state.seen is None else state.seen.to(preview.picture.device)
        facts["changes"] = window_changes(preview.picture, seen, grid)
    told = [item.told() for item in evidence]
    if unreliable(settings, [each.score for each in told], [each.seen for each in told]):
        facts["salient"] = attended(settings, grid, host, evidence)


def unreliable(settings: WindowSettings, scores: Iterable[float], seen: Iterable[bool]) -> bool:
    """Whether the masks of the frame before cannot be relied on. seen: whether anything of them is there."""
    return not any(seen) or any(not score >= settings.object.score_gate for score in scores)


def attended(settings: WindowSettings, grid: WindowGrid, host: HostView, evidence: Sequence[Evidence]) -> Tensor:
    """Windows that hold the prompts' attention, bool [grid.count]; none of a decoder without attention."""
    if not host.modules("token_to_image"):
        return torch.zeros(grid.count, dtype=torch.bool, device=evidence[0].mask.device)
    maps = torch.stack([saliency_map(host, item) for item in evidence])
    return salient_windows(maps, grid, settings.object.saliency_mass)


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
        windows, more = allot(taken, state.ages, settings.rolling, settings.round_to, settings.fill), None
    else:
        limit = settings.object.unsure
        windows, more = within_budget(
            taken, seen.touched, state.ages, seen.changes, budget=settings.budget, rolling=settings.rolling,
            round_to=settings.round_to, fill=settings.fill, max_wait=settings.object.max_wait,
            background=settings.object.background,
            unsure=limit is not None and any(not doubt <= limit for doubt in seen.doubts),
        )  # fmt: skip
    if len(windows) == len(taken):
        return None, more or "every window needed"
    return windows, more


@dataclass(frozen=True)
class FixedWindows:
    """The same windows on every frame that may be routed: speed does not depend on which windows are kept.

    timed: do the router's work all the same, to be timed with it.
    """

    windows: tuple[int, ...]
    timed: bool = False

    def __call__(
        self, settings: WindowSettings, grid: WindowGrid, host: HostView, context: FrameContext,
        state: WindowState, preview: FramePreview, device: torch.device,
    ) -> tuple[list[int] | None, str | None]:  # fmt: skip
        """See `Policy`."""
        reason = must_be_dense(settings, context, state, device)
        if reason is None and self.timed:
            by_evidence(settings, grid, host, context, state, preview, device)
        return (None, reason) if reason is not None else (sorted(self.windows), None)


def tile_urgency(
    tiles: TileGrid, settings: WindowSettings, memory: TileMemory | None, known: Mapping[int, Evidence],
    preview: FramePreview,
) -> Tensor | None:  # fmt: skip
    """How urgent each piece is, fp32 [P]; None without extra pieces."""
    if memory is None or preview.picture is None or memory.picture is None or memory.ages is None:
        return None
    near = tiles.near(union([item.mask for item in known.values()]), settings.object.dilation)
    return piece_urgency(near, tiles.changes(preview.picture, memory.picture), memory.ages)


def must_be_dense(
    settings: WindowSettings, context: FrameContext, state: WindowState, device: torch.device
) -> str | None:
    """Reasons that need no look at the device."""
    step, video = context.step, context.video
    if step is None or step.dense:
        return "prompted frame"
    previous = context.frame + 1 if step.reverse else context.frame - 1
    if video.encoded != previous or (settings.refresh.start and not video.continuous):
        return "first frame or jump"
    for obj_id in step.objects:
        evidence = context.known.get(obj_id)
        if evidence is None or evidence.frame != previous:
            return "object without evidence"
    if settings.refresh.every and state.since_dense >= settings.refresh.every:
        return "refresh interval"
    last = state.span if settings.remembers_span else state.tiles
    asked = settings.remembers_span or settings.stages.span == "tiles"
    if asked and (last is None or last.output.device != device):
        return "no last output"
    if settings.stages.stage4 == "routed" and (state.stage4 is None or state.stage4.device != device):
        return "no last output"
    if settings.stages.globals != "packed" and (
        state.globals is None or any(each.device != device for each in state.globals)
    ):
        return "no last output"
    return None


def lost_object(settings: WindowSettings, state: WindowState, objects: Iterable[int], scores: Sequence[float]) -> bool:
    """Whether an object whose score fell to 0 or less asks for a dense frame; `state.lost` is brought up to date."""
    absent = {obj_id for obj_id, score in zip(objects, scores, strict=True) if not score > 0}
    newly = absent - state.lost
    state.lost = absent
    when = settings.refresh.lost
    return bool(absent) if when == "always" else bool(newly) and when == "once"
