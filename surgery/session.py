"""What one video remembers. Lives on the host's own session, never on the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from surgery.retrieval.bank import ObjectMemory
from surgery.retrieval.queries import QueryMemory, Reach
from surgery.retrieval.shared import FrameWork
from surgery.routing.span import SpanMemory
from surgery.routing.tiles import TileMemory


class SessionHandle(ABC):
    """The host's session as the surgery sees it: where the state hangs, and the host's cache of image features.

    Made for one call and never kept: a state that knew its session would keep a finished video's tensors alive.
    """

    def __init__(self, holder: dict[str, Any], key: str) -> None:
        self.holder, self.key = holder, key

    def home(self) -> Any:
        """A weak reference to the session, where the host's session takes one."""
        return None

    @abstractmethod
    def cached(self) -> set[int]:
        """Frames whose image features the host holds."""

    @abstractmethod
    def evict(self, frame: int) -> None:
        """Make the host encode `frame` again when it next needs it."""


@dataclass(eq=False)
class Evidence:
    """Where one object was on one frame.

    mask: bool [h, w], union of the mask candidates at low resolution, or the best by IoU. score: object score logit,
    one element. best: the best candidate as well, only while a watcher looks on. centre: of the mask, where the recipe
    asks for motion.
    taps: per token-to-image attention of the decoder, the tokens it read (query, key), kept so that the saliency map is
    computed only when the gate fires.
    """

    frame: int
    mask: Tensor
    score: Tensor
    taps: tuple[tuple[Tensor, Tensor], ...]
    best: Tensor | None = None
    centre: Tensor | None = None


@dataclass(eq=False)
class TrunkCode:
    """A position code [1, H, W, C], and what it was made of.

    made_for: map, dtypes, weights by address and version. weights: held, so that nothing else comes to lie there.
    """

    made_for: tuple[object, ...]
    weights: tuple[Tensor, ...]
    code: Tensor


@dataclass(frozen=True)
class FrameRecord:
    """How one frame was encoded.

    windows: ids computed, out of `grid` (rows, cols). dense: why all were, or None. cover: side of the padded grid over
    the side of the image (1 without padding).
    """

    frame: int
    windows: tuple[int, ...]
    grid: tuple[int, int]
    dense: str | None
    cover: float = 1.0


@dataclass
class SessionStats:
    """Running totals of one video; fractions are averages over tracked frames."""

    frames: int = 0
    windows_kept: float = 0.0
    keys_kept: float = 0.0
    key_calls: int = 0
    queries_kept: float = 0.0
    query_calls: int = 0
    dense: Counter[str] = field(default_factory=Counter)
    last: FrameRecord | None = None

    @property
    def window_fraction(self) -> float | None:
        """Mean fraction of stage-3 windows computed, over tracked frames; None before the first."""
        return self.windows_kept / self.frames if self.frames else None

    @property
    def key_fraction(self) -> float | None:
        """Mean fraction of spatial memory keys read, over objects and tracked frames; None before the first."""
        return self.keys_kept / self.key_calls if self.key_calls else None

    @property
    def query_fraction(self) -> float | None:
        """Mean fraction of tokens that were queries of memory attention, over objects and tracked frames, under query
        routing; None before the first."""
        return self.queries_kept / self.query_calls if self.query_calls else None


@dataclass(eq=False)
class VideoState:
    """State of one video under one surgery.

    token: identity of the surgery it belongs to; a state of another surgery is never read. cursor: last tracked (frame,
    reverse) of this pass. encoded: last frame whose image was encoded. computed: its windows, None for all. routed:
    frames whose cached features were routed; halved: frames whose cached features are of half precision. ages: frames
    since each window was computed. seen: [3, H, W] picture of every token when its window was computed; changed: fp32
    [H * W], how much it has changed since, under a query budget. span, tiles: what skipped windows return, as the
    recipe's span asks. stage4: [1, H, W, C] output of stage 4, every window when last computed, where stage 4 is
    routed. lost: objects whose last known score was <= 0. reach, queries: where each object may be on the frame in
    progress, and its last conditioned features, under query routing. shared: what the frame in progress computed once
    for several objects. trunk_code: the encoder's position code, kept from frame to frame. positions: the one position
    code of all memory frames, where host caches are trimmed. stores: the host's output store of every object, by which
    a reset is noticed.
    """

    token: object
    cursor: tuple[int, bool] | None = None
    continuous: bool = False
    encoded: int | None = None
    computed: tuple[int, ...] | None = None
    routed: set[int] = field(default_factory=set)
    halved: set[int] = field(default_factory=set)
    since_dense: int = 0
    ages: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    span: SpanMemory | None = None
    tiles: TileMemory | None = None
    stage4: Tensor | None = None
    thumbnail: Tensor | None = None
    seen: Tensor | None = None
    changed: Tensor | None = None
    memories: dict[tuple[int, bool], ObjectMemory] = field(default_factory=dict)
    reach: dict[int, Reach] = field(default_factory=dict)
    queries: dict[tuple[int, bool], QueryMemory] = field(default_factory=dict)
    shared: FrameWork | None = None
    trunk_code: TrunkCode | None = None
    positions: Tensor | None = None
    stores: dict[int, Any] = field(default_factory=dict)
    stats: SessionStats = field(default_factory=SessionStats)

    def memory_of(self, obj_id: int, reverse: bool) -> ObjectMemory:
        """Salient indices of one object in one direction, made on first use."""
        return self.memories.setdefault((obj_id, reverse), ObjectMemory())

    def sync_objects(self, present: dict[int, Any]) -> None:
        """Drop what is known of objects that were removed or reset; start anew when none is left.

        present: the host's output store of every object, by id.
        """
        gone = {obj_id for obj_id, store in self.stores.items() if present.get(obj_id) is not store}
        if gone and len(gone) == len(self.stores):
            self.cursor = self.encoded = self.span = self.tiles = self.stage4 = self.thumbnail = self.seen = None
            self.continuous = False
        for obj_id in gone:
            self.evidence.pop(obj_id, None)
            self.reach.pop(obj_id, None)
            for direction in (False, True):
                self.memories.pop((obj_id, direction), None)
                self.queries.pop((obj_id, direction), None)
        self.lost -= gone
        self.stores = dict(present)
