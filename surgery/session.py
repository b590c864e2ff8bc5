"""What one video remembers. Lives on the host's own session, never on the model."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from surgery.retrieval.bank import ObjectMemory
from surgery.retrieval.queries import ObjectRegion, QueryMemory
from surgery.retrieval.shared import SharedSelfAttention
from surgery.routing.span import SpanMemory
from surgery.routing.tiles import TileMemory


class Generation:
    """One surgery on one model: a state of another one is never read.

    states: every live state of the model, with a weak reference to its session where the host's session takes one.
    """

    def __init__(self, states: weakref.WeakKeyDictionary[VideoState, Any]) -> None:
        self.states = states


class Features(dict[int, Any]):
    """The host's image features by frame, where the host keeps them.

    A copy or a pickle holds only those that the stock model would have made: the others could not be taken out of it
    when the surgery is undone. What is missing is encoded again, by the windows of before.
    """

    def __init__(self, features: dict[int, Any], state: VideoState) -> None:
        super().__init__(features)
        self.state = state

    def _exact(self) -> dict[int, Any]:
        return {frame: each for frame, each in self.items() if frame not in self.state.approximate}

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[int, Any]:
        return copy.deepcopy(self._exact(), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (self._exact(),)


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
    def features(self) -> dict[int, Any]:
        """The host's cache of image features, by frame."""

    @abstractmethod
    def keep(self, features: dict[int, Any]) -> None:
        """Put another dict in the place of the host's cache."""

    def cached(self) -> set[int]:
        """Frames whose image features the host holds."""
        return set(self.features())

    def evict(self, frame: int) -> None:
        """Make the host encode `frame` again when it next needs it."""
        self.features().pop(frame, None)

    def guard(self, state: VideoState) -> None:
        """Keep what is not the stock model's out of copies, see `Features`."""
        features = self.features()
        if state.approximate and not (isinstance(features, Features) and features.state is state):
            self.keep(Features(features, state))

    def unguard(self, state: VideoState) -> None:
        """Leave only what the stock model would have made, in a dict as the host has it."""
        for frame in state.approximate:
            self.evict(frame)
        if isinstance(self.features(), Features):
            self.keep(dict(self.features()))


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


_OF_THE_PICTURE = (
    "encoded", "computed", "since_dense", "ages", "lost", "span", "tiles", "stage4", "thumbnail", "seen", "changed",
)  # fmt: skip
"""What encoding a frame changes in a video's state."""


@dataclass(eq=False)
class _Found:
    """What a frame found when it was first encoded at a cursor. counted: its windows are in the statistics."""

    frame: int
    cursor: tuple[int, bool] | None
    values: dict[str, Any]
    evidence: dict[int, Evidence]
    counted: bool = False

    def copied(self) -> _Found:
        return replace(self, evidence=dict(self.evidence))


@dataclass(eq=False)
class _Begun:
    """What an object found when it was first tracked on a frame. keys, tokens: shares kept, once counted."""

    memory: ObjectMemory
    queries: QueryMemory | None
    evidence: Evidence | None
    keys: float | None = None
    tokens: float | None = None

    def copied(self) -> _Begun:
        return replace(self, memory=self.memory.copied())


@dataclass(eq=False)
class VideoState:
    """State of one video under one surgery. A deep copy goes on as the original would; a pickle holds nothing.

    Tensors are replaced and never written to, so copies and what `_Found` keeps share them.
    generation: the surgery it belongs to, None for a state that hangs on no session. cursor: last tracked (frame,
    reverse) of this pass. encoded: last frame whose image was encoded. computed: its windows, None for all. routed:
    frames whose cached features were routed; halved: frames whose cached features are of half precision. ages: frames
    since each window was computed. seen: [3, H, W] picture of every token when its window was computed; changed: fp32
    [H * W], how much it has changed since, under a query budget. span, tiles: what skipped windows return, as the
    recipe's span asks. stage4: [1, H, W, C] output of stage 4, every window when last computed, where stage 4 is
    routed. lost: objects whose last known score was <= 0. regions, queries: where each object may be on the frame in
    progress, and its last conditioned features, under query routing. shared: what the frame in progress computed once
    for several objects. trunk_code: the encoder's position code, kept from frame to frame. positions: the one position
    code of all memory frames, where host caches are trimmed. stores: the host's output store of every object, by which
    a reset is noticed. found: what the last encoded frame found; begun: what the objects that were tracked on the frame
    at the cursor did: a frame that is tracked again starts from there.
    """

    generation: Generation | None
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
    regions: dict[int, ObjectRegion] = field(default_factory=dict)
    queries: dict[tuple[int, bool], QueryMemory] = field(default_factory=dict)
    shared: SharedSelfAttention | None = None
    trunk_code: TrunkCode | None = None
    positions: Tensor | None = None
    stores: dict[int, Any] = field(default_factory=dict)
    stats: SessionStats = field(default_factory=SessionStats)
    found: _Found | None = None
    begun: dict[int, _Begun] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoState:
        own = {
            "memories": {key: memory.copied() for key, memory in self.memories.items()},
            "begun": {obj_id: begun.copied() for obj_id, begun in self.begun.items()},
            "found": self.found.copied() if self.found is not None else None,
            "evidence": dict(self.evidence),
            "regions": dict(self.regions),
            "queries": dict(self.queries),
            "stats": replace(self.stats, dense=Counter(self.stats.dense)),
            "stores": copy.deepcopy(self.stores, memo),
            # The copied session has none of these features, nor the tensors that objects would share.
            "routed": set[int](),
            "halved": set[int](),
            "shared": None,
        }
        twin = replace(self, **own)  # type: ignore[arg-type]
        if self.generation is not None and self in self.generation.states:
            session = self.generation.states[self]
            original = session() if session is not None else None
            home = memo.get(id(original)) if original is not None else None
            if session is None or home is not None:
                self.generation.states[twin] = weakref.ref(home) if home is not None else None
        return twin

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    @property
    def approximate(self) -> set[int]:
        """Frames whose cached features are not those of the stock model."""
        return self.routed | self.halved

    def advance(self, frame: int, reverse: bool) -> None:
        """Move to another tracked frame; a jump starts a new pass, whose memory saliency is measured afresh."""
        self.shared = None
        self.begun.clear()
        self.continuous = self.cursor == (frame + 1 if reverse else frame - 1, reverse)
        self.cursor = (frame, reverse)
        self.stats.frames += 1
        self.stats.windows_kept += 1.0
        if not self.continuous:
            for (_, direction), memory in self.memories.items():
                if direction == reverse:
                    memory.clear()

    def begin(self, obj_id: int, reverse: bool) -> None:
        """One object is tracked on the frame at the cursor; again, if it was: then from what it first found."""
        key, begun = (obj_id, reverse), self.begun.get(obj_id)
        if begun is None:
            memory = self.memory_of(obj_id, reverse).copied()
            self.begun[obj_id] = _Begun(memory, self.queries.get(key), self.evidence.get(obj_id))
            return
        self.memories[key] = begun.memory.copied()
        _put_back(self.queries, key, begun.queries)
        _put_back(self.evidence, obj_id, begun.evidence)

    def encode(self, frame: int, dense: bool) -> dict[int, Evidence]:
        """`frame` is about to be encoded; again, if it was at this cursor: then from what it first found, unless the
        frame must be dense anyway.

        Returns:
            Where every object was on the frame before, as far as known.
        """
        found = self.found
        if found is None or (found.frame, found.cursor) != (frame, self.cursor):
            values = {name: getattr(self, name) for name in _OF_THE_PICTURE}
            self.found = _Found(frame, self.cursor, values, dict(self.evidence))
            return self.evidence
        if dense:
            return self.evidence
        for name, value in found.values.items():
            setattr(self, name, value)
        return found.evidence

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
            self.found, self.continuous = None, False
        for obj_id in gone:
            self.evidence.pop(obj_id, None)
            self.regions.pop(obj_id, None)
            self.begun.pop(obj_id, None)
            if self.found is not None:
                self.found.evidence.pop(obj_id, None)
            for direction in (False, True):
                self.memories.pop((obj_id, direction), None)
                self.queries.pop((obj_id, direction), None)
        self.lost -= gone
        self.stores = dict(present)


_K = TypeVar("_K")
_V = TypeVar("_V")


def _put_back(known: dict[_K, _V], key: _K, value: _V | None) -> None:
    known.pop(key, None)
    if value is not None:
        known[key] = value
