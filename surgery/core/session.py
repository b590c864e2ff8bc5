"""What one video remembers. Lives on the host's own session, never on the model."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from surgery.core.evidence import Evidence

S = TypeVar("S", bound="State")


class State:
    """What one operation remembers of a video, or of one object of it in one direction of tracking.

    Tensors are replaced and never written to, so that copies share them.
    """

    def copied(self: S) -> S:
        """A copy that later changes of either do not touch: containers are copied, tensors shared."""
        return copy.copy(self)

    def jumped(self) -> None:
        """The tracking jumped to another frame: a new pass begins. Asked of objects' states in its direction."""

    def forget(self, frame: int) -> None:
        """`frame` is about to be tracked or prompted again. Asked of objects' states."""

    def removed(self, obj_id: int) -> None:
        """An object was removed or reset. Asked of a video's states; the object's own are dropped."""


class Generation:
    """One surgery on one model: a state of another one is never read.

    states: every live state of the model, with a weak reference to its session where the host's session takes one.
    """

    def __init__(self, states: weakref.WeakKeyDictionary[VideoState, Any]) -> None:
        self.states = states


Stores = tuple[MutableMapping[int, Any], MutableMapping[int, Any], MutableMapping[int, Any]]
"""Of one object, by frame: outputs of conditioning frames, of tracked frames, and notes on tracked frames."""


class Features(dict[int, Any]):
    """The host's image features by frame, where the host keeps them.

    A copy or a pickle holds only those that the stock model would have made: the others could not be taken out of it
    when the surgery is undone. What is missing is encoded again, by the windows of before.
    """

    def __init__(self, features: dict[int, Any], state: VideoState) -> None:
        super().__init__(features)
        self.state = state

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, ({frame: each for frame, each in self.items() if frame not in self.state.approximate},)


class SessionHandle(ABC):
    """The host's session as the surgery sees it: where the state hangs, and what the host keeps of every frame.

    Made for one call and never kept: a state that knew its session would keep a finished video's tensors alive.
    mask_key, position_key: of an object's stored output of one frame, what is not read again once its memory is
    encoded, and its memory's position code; None where the host stores none.
    """

    mask_key: str | None = None
    position_key: str | None = None

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

    @abstractmethod
    def outputs(self) -> Mapping[int, Stores]:
        """What the session keeps of every object, by its id."""

    def images(self) -> MutableMapping[int, Tensor] | None:
        """The images of a stream by frame, where the session keeps them one by one."""
        return None

    def state(self) -> VideoState | None:
        """What hangs on the session, of whatever surgery."""
        found = self.holder.get(self.key)
        return found if isinstance(found, VideoState) else None

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


@dataclass(frozen=True)
class FrameRecord:
    """How one frame was encoded.

    windows: ids computed, out of `grid` (rows, cols). dense: why all were, or None. cover: side of the padded grid over
    the side of the image (1 without padding). widened: why more were than the budget allows, or None.
    """

    frame: int
    windows: tuple[int, ...]
    grid: tuple[int, int]
    dense: str | None
    cover: float = 1.0
    widened: str | None = None


@dataclass
class SessionStats:
    """Running totals of one video. kept: shares computed of what an operation may skip, by its name, summed over calls:
    (sum, number of calls). dense: reasons for dense frames and how often; widened: for frames that computed more than
    the budget; restored: for objects' frames that read all memory. last: of the last frame encoded."""

    frames: int = 0
    kept: dict[str, tuple[float, int]] = field(default_factory=dict)
    dense: Counter[str] = field(default_factory=Counter)
    widened: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)
    last: FrameRecord | None = None

    def count(self, name: str, share: float) -> None:
        """One more call."""
        total, calls = self.kept.get(name, (0.0, 0))
        self.kept[name] = (total + share, calls + 1)

    def correct(self, name: str, by: float) -> None:
        """A share that was counted turned out to be another one."""
        total, calls = self.kept[name]
        self.kept[name] = (total + by, calls)

    def fraction(self, name: str) -> float | None:
        """Mean share over the calls; None before the first."""
        return self.since(SessionStats()).get(name)

    def since(self, before: SessionStats) -> dict[str, float]:
        """Mean shares of the calls after those of `before`."""
        found = {}
        for name, (total, calls) in self.kept.items():
            past, many = before.kept.get(name, (0.0, 0))
            if calls > many:
                found[name] = (total - past) / (calls - many)
        return found

    def copied(self) -> SessionStats:
        return copy.deepcopy(self)


@dataclass(eq=False)
class _Encoded:
    """What a frame found when it was first encoded at a cursor. counted: it is in the statistics."""

    frame: int
    cursor: tuple[int, bool] | None
    encoded: int | None
    states: dict[type, State]
    evidence: dict[int, Evidence]
    counted: bool = False


@dataclass(eq=False)
class _Begun:
    """What an object found when it was first tracked on a frame. counted: names of the shares that are counted."""

    states: dict[type, State]
    evidence: Evidence | None
    counted: set[str] = field(default_factory=set)


@dataclass(eq=False)
class VideoState:
    """State of one video under one surgery. A deep copy goes on as the original would; a pickle holds nothing.

    generation: the surgery it belongs to, None for a state that hangs on no session. cursor: last tracked (frame,
    reverse) of this pass; continuous: the frame before it was the one before. encoded: last frame whose image was
    encoded. sparse: frames whose cached features are good for this pass only; rounded: frames whose features are good
    as long as the surgery is. states: of the operations; objects: the same by (object, reverse). stores: the
    host's output store of every object, by which a reset is noticed. first: what the last encoded frame found; begun:
    what the objects that were tracked on the frame at the cursor did: a frame that is tracked again starts from there.
    """

    generation: Generation | None
    cursor: tuple[int, bool] | None = None
    continuous: bool = False
    encoded: int | None = None
    sparse: set[int] = field(default_factory=set)
    rounded: set[int] = field(default_factory=set)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    states: dict[type, State] = field(default_factory=dict)
    objects: dict[tuple[int, bool], dict[type, State]] = field(default_factory=dict)
    stores: dict[int, Any] = field(default_factory=dict)
    stats: SessionStats = field(default_factory=SessionStats)
    first: _Encoded | None = None
    begun: dict[int, _Begun] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoState:
        first = self.first
        own = {
            "states": _copied(self.states),
            "objects": {key: _copied(states) for key, states in self.objects.items()},
            "begun": {
                obj_id: replace(begun, states=_copied(begun.states), counted=set(begun.counted))
                for obj_id, begun in self.begun.items()
            },
            "first": first and replace(first, states=_copied(first.states), evidence=dict(first.evidence)),
            "evidence": dict(self.evidence),
            "stats": self.stats.copied(),
            "stores": copy.deepcopy(self.stores, memo),
            # The copied session has none of these features.
            "sparse": set[int](),
            "rounded": set[int](),
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
        return self.sparse | self.rounded

    def state(self, kind: type[S]) -> S:
        """What an operation remembers of the video, made on first use. kind: the operation's own."""
        return _found(self.states, kind)

    def of_object(self, kind: type[S], obj_id: int, reverse: bool) -> S:
        """What an operation remembers of one object in one direction, made on first use."""
        return _found(self.objects.setdefault((obj_id, reverse), {}), kind)

    def set_object(self, state: State, obj_id: int, reverse: bool) -> None:
        """Remember this of one object in one direction, in place of what was."""
        self.objects.setdefault((obj_id, reverse), {})[type(state)] = state

    def advance(self, frame: int, reverse: bool) -> None:
        """Move to another tracked frame; a jump starts a new pass."""
        self.begun.clear()
        self.continuous = self.cursor == (frame + 1 if reverse else frame - 1, reverse)
        self.cursor = (frame, reverse)
        self.stats.frames += 1
        if not self.continuous:
            for (_, direction), states in self.objects.items():
                for state in states.values() if direction == reverse else ():
                    state.jumped()

    def begin(self, obj_id: int, reverse: bool) -> None:
        """One object is tracked on the frame at the cursor; again, if it was: then from what it first found."""
        key, begun = (obj_id, reverse), self.begun.get(obj_id)
        if begun is None:
            self.begun[obj_id] = _Begun(_copied(self.objects.get(key, {})), self.evidence.get(obj_id))
            return
        self.objects[key] = _copied(begun.states)
        self.evidence.pop(obj_id, None)
        if begun.evidence is not None:
            self.evidence[obj_id] = begun.evidence

    def count(self, name: str, share: float, obj_id: int, restored: str | None = None) -> None:
        """An object's share of what an operation may skip on the frame at the cursor, counted once a frame.

        restored: why nothing was skipped although it could have been.
        """
        begun = self.begun.get(obj_id)
        if begun is not None and name not in begun.counted:
            begun.counted.add(name)
            self.stats.count(name, share)
            if restored is not None:
                self.stats.restored[restored] += 1

    def encode(self, frame: int, dense: bool) -> dict[int, Evidence]:
        """`frame` is about to be encoded; again, if it was at this cursor: then from what it first found, unless the
        frame must be dense anyway.

        Returns:
            Where every object was on the frame before, as far as known.
        """
        first = self.first
        if first is None or (first.frame, first.cursor) != (frame, self.cursor):
            self.first = _Encoded(frame, self.cursor, self.encoded, _copied(self.states), dict(self.evidence))
            return self.evidence
        if dense:
            return self.evidence
        self.encoded, self.states = first.encoded, _copied(first.states)
        return first.evidence

    def sync_objects(self, present: dict[int, Any]) -> None:
        """Drop what is known of objects that were removed or reset; start anew when none is left.

        present: the host's output store of every object, by id.
        """
        gone = {obj_id for obj_id, store in self.stores.items() if present.get(obj_id) is not store}
        if gone and len(gone) == len(self.stores):
            self.cursor = self.encoded = self.first = None
            self.continuous = False
            self.states.clear()
        for obj_id in gone:
            self.evidence.pop(obj_id, None)
            self.begun.pop(obj_id, None)
            if self.first is not None:
                self.first.evidence.pop(obj_id, None)
            for direction in (False, True):
                self.objects.pop((obj_id, direction), None)
            for state in self.states.values():
                state.removed(obj_id)
        self.stores = dict(present)


def _copied(states: Mapping[type, State]) -> dict[type, State]:
    return {kind: state.copied() for kind, state in states.items()}


def _found(states: dict[type, State], kind: type[S]) -> S:
    if kind not in states:
        states[kind] = kind()
    found = states[kind]
    assert isinstance(found, kind)
    return found
