"""What a host must tell the surgery about itself, and what the grafted modules share."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.access import is_paused
from surgery.core.parts import PARTS
from surgery.graft import Graft, host_class
from surgery.hosts.driver import Driver, FrameSource
from surgery.hosts.layout import BlockInfo, SpanInfo, find_span
from surgery.hosts.loader import Loader
from surgery.hosts.ownership import Structure
from surgery.hosts.watcher import Watcher
from surgery.operations import (
    CompileParts,
    Precision,
    SparseMemoryRetrieval,
    SparseQueryRouting,
    SparseWindowRouting,
    TrimCaches,
)
from surgery.operations.compile import Compilation, ParkedForwards
from surgery.recipe import Recipe
from surgery.retrieval.bank import KeyPlan, MemoryFrame
from surgery.retrieval.queries import QueryRoute
from surgery.retrieval.shared import SharedSelfAttention
from surgery.routing.late import LateGrid
from surgery.routing.shortcut import Shortcut
from surgery.routing.span import Route
from surgery.routing.tiles import TileGrid
from surgery.routing.windows import WindowGrid
from surgery.session import Generation, SessionHandle, SessionStats, VideoState

if TYPE_CHECKING:
    from surgery.operations.precision import HalfWeights


_SETTINGS = (
    "routing", "retrieval", "queries", "precision", "caches", "compiled", "strips", "grid",
    "tiles", "late",
)  # fmt: skip
"""What a copy of a binding takes over; everything else belongs to calls, sessions or the model it was bound to."""


class Binding:
    """What the grafted modules of one model share: settings, and what is bound for the call in progress.

    Everything about a video lives in its `VideoState`. `route`, `plan`, `query`, `shared`, `inputs` (of the
    self-attentions in memory attention) and `taps` are set only while a host call is in progress; threads that share a
    model take turns frame by frame (`seam`). `root`: the model. `weights`: held while a part has other weights than its
    own. `forced` replaces the router's choice on frames that may be routed: speed does not depend on which windows are
    kept, so benchmarks fix them. `watcher`: see `Watcher`. `halves`: half-precision copies of weights by part, made
    again when they are missing. `warned`: the caller's autocast was noticed. `compilation`: the compiled forwards, or
    None; `eager`: they are left out for now. `strips`: large maps may go strip by strip, see `surgery.hosts.strips`.
    `codes`: see `surgery.hosts.positions`.
    """

    def __init__(self) -> None:
        self.weights = threading.RLock()
        self.root: weakref.ref[nn.Module] | None = None
        self.states: weakref.WeakKeyDictionary[VideoState, Any] = weakref.WeakKeyDictionary()
        self.generation = Generation(self.states)
        self.routing: SparseWindowRouting | None = None
        self.retrieval: SparseMemoryRetrieval | None = None
        self.queries: SparseQueryRouting | None = None
        self.precision: Precision | None = None
        self.halves: dict[str, HalfWeights] = {}
        self.warned = False
        self.caches: TrimCaches | None = None
        self.compilation: Compilation | None = None
        self.eager = False
        self.strips = False
        self.codes: dict[tuple[Any, ...], Tensor] = {}
        self.grid: WindowGrid | None = None
        self.tiles: TileGrid | None = None
        self.late: LateGrid | None = None
        self.route: Route | None = None
        self.plan: KeyPlan | None = None
        self.query: QueryRoute | None = None
        self.shared: SharedSelfAttention | None = None
        self.inputs: list[Tensor | None] | None = None
        self.taps: list[tuple[Tensor, Tensor] | None] | None = None
        self.step: ObjectStep | None = None
        self.pending: tuple[VideoState, int, SessionHandle] | None = None
        self.memory_frames: list[MemoryFrame] | None = None
        self.forced: Sequence[int] | None = None
        self.watcher: Watcher | None = None
        self.stats: SessionStats | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        revive, settings = self.__reduce__()
        return revive(*settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive_binding, tuple(getattr(self, name) for name in _SETTINGS)

    @property
    def compiled(self) -> CompileParts | None:
        """What runs compiled, or None. Setting it forgets every graph of before."""
        return self.compilation.settings if self.compilation is not None else None

    @compiled.setter
    def compiled(self, settings: CompileParts | None) -> None:
        self.compilation = Compilation(settings) if settings is not None else None

    @property
    def enabled(self) -> bool:
        """False for callers inside `disabled`."""
        return not is_paused(self)

    def state_of(self, handle: SessionHandle) -> VideoState:
        """The video state of a session, made anew when absent or when it belongs to another surgery."""
        state = handle.holder.get(handle.key)
        if not isinstance(state, VideoState) or state.generation is not self.generation:
            if isinstance(state, VideoState):
                handle.unguard(state)
            state = VideoState(generation=self.generation)
            handle.holder[handle.key] = state
            self.states[state] = handle.home()
        self.stats = state.stats
        return state

    @contextmanager
    def stock_precision(self) -> Iterator[None]:
        """Inside, every part runs in the precision of the stock model: what is fitted or counted is counted there."""
        before, self.precision = self.precision, None
        try:
            yield
        finally:
            self.precision = before

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside, no part runs compiled by the recipe; the same is computed, and what is compiled already is kept."""
        before, self.eager = self.eager, True
        try:
            yield
        finally:
            self.eager = before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, a module runs as stock does, and nothing of it is noted."""
        before = self.route, self.plan, self.query, self.shared, self.inputs, self.taps
        self.route = self.plan = self.query = self.shared = self.inputs = self.taps = None
        try:
            yield
        finally:
            self.route, self.plan, self.query, self.shared, self.inputs, self.taps = before


def _revive_binding(*settings: Any) -> Binding:
    binding = Binding()
    for name, value in zip(_SETTINGS, settings, strict=True):
        setattr(binding, name, value)
    return binding


@dataclass
class ObjectStep:
    """One object's step on one frame.

    handle: the session. objects: the host's own output store of every object of the session, by id; a
    store that is another object than last time means the object was reset.
    shared_prompt: another object is prompted on this very frame.
    """

    handle: SessionHandle
    obj_id: int
    objects: dict[int, Any]
    frame: int
    reverse: bool
    prompted: bool
    shared_prompt: bool = False

    @property
    def dense(self) -> bool:
        """Whether a prompt on this frame asks for every window."""
        return self.prompted or self.shared_prompt


class HostView(ABC):
    """One model seen through its host: where the parts are, and which mixin each part gets.

    name: of the host. models: the class it is for, as a user knows it. driver: how it is given a video. loader: how it
    comes to be.
    cannot: ways of half precision that a whole model does not run in ("weights": converted; "fp16", "bf16"), each with
    why and what to use instead.
    """

    name: ClassVar[str]
    models: ClassVar[str]
    driver: ClassVar[type[Driver]]
    loader: ClassVar[Loader]
    cannot: ClassVar[Mapping[str, str]] = {}
    span_block: ClassVar[type[Graft]]
    late_block: ClassVar[type[Graft]]
    cross_attention: ClassVar[type[Graft]]
    self_attention: ClassVar[type[Graft]]
    memory_attention_mixin: ClassVar[type[Graft]]
    decoder_attention: ClassVar[type[Graft]]
    root: ClassVar[type[Graft]]
    decoder: ClassVar[type[Graft] | None] = None

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.binding = Binding()
        self.binding.root = weakref.ref(model)
        self.structure = Structure()
        self.recipe: Recipe | None = None
        self.span_info: SpanInfo | None = None
        self.grafted: list[nn.Module] = []
        self.shortcut_holder: nn.Module | None = None
        self.adapter: str | None = None
        self.parked = ParkedForwards()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.binding.root = weakref.ref(self.model)  # of the copy

    @classmethod
    @abstractmethod
    def matches(cls, model: object) -> bool:
        """Whether `model` is a video model of this host: exactly its own. Imports the library only for its models."""

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        """What a model that no host matches lacks to be one of this host; None where it is nothing like one."""
        return None

    def drive(self, frames: FrameSource, size: tuple[int, int]) -> Driver:
        """Open a session for a video, see `Driver`."""
        return self.driver(self, frames, size)

    @abstractmethod
    def sessions_of(self, state: VideoState) -> list[SessionHandle]:
        """The live sessions that hold `state`: one, more where a session was copied shallowly."""

    def release_sessions(self) -> None:
        """Leave nothing of this surgery in any session: neither a state nor routed features in the host's cache."""
        for state in list(self.binding.states):
            for handle in self.sessions_of(state):
                handle.unguard(state)
                handle.holder.pop(handle.key, None)
        self.binding.states.clear()

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Encoder blocks in order."""

    @abstractmethod
    def block_info(self, index: int) -> BlockInfo:
        """Structure of block `index`."""

    @abstractmethod
    def block_tensors(self, index: int) -> dict[str, Tensor]:
        """Weights of block `index` under host-neutral (stock sam2) names."""

    @abstractmethod
    def patch_stride(self) -> int:
        """Pixels per token at block 0."""

    @abstractmethod
    def stage_starts(self) -> tuple[int, ...]:
        """Index of the first block of every stage."""

    @abstractmethod
    def image_size(self) -> int:
        """Side of the square input, pixels."""

    @abstractmethod
    def mask_side(self) -> int:
        """Side of the low-resolution masks that the decoder gives, pixels."""

    @abstractmethod
    def frame_side(self) -> int:
        """Side of a frame's token map in memory attention: of its queries, and of the keys of one memory frame."""

    def frame_tokens(self) -> int:
        """Tokens of that map."""
        return self.frame_side() ** 2

    @abstractmethod
    def bank_size(self) -> int:
        """Frames of a full memory bank, one conditioning frame included."""

    @abstractmethod
    def memory_channels(self) -> int:
        """Channels of a memory token."""

    @abstractmethod
    def memory_horizon(self) -> int:
        """How many frames back memory attention may read a tracked frame: its memory or its object pointer."""

    @abstractmethod
    def image_encoder(self) -> nn.Module:
        """Pixels [1, 3, S, S] to feature levels, neck included."""

    def parts(self) -> dict[str, nn.Module]:
        """The parts that `precision` and `compile` act on, by their names in a recipe."""
        modules = (self.image_encoder(), self.memory_attention(), self.memory_encoder(), self.decoder_module())
        return dict(zip(PARTS, modules, strict=True))

    @abstractmethod
    def prompt_encoder(self) -> nn.Module:
        """The prompt encoder."""

    @abstractmethod
    def memory_encoder(self) -> nn.Module:
        """The memory encoder."""

    @abstractmethod
    def memory_attention(self) -> nn.Module:
        """The memory attention module."""

    @abstractmethod
    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        """Call memory attention as the host does, with zero positions: current [T, 1, C], memory [M, 1, D]."""

    @abstractmethod
    def cross_attentions(self) -> list[nn.Module]:
        """The cross-attention of every memory attention layer, in order."""

    @abstractmethod
    def self_attentions(self) -> list[nn.Module]:
        """The self-attention of every memory attention layer, in order."""

    @abstractmethod
    def token_to_image(self) -> list[nn.Module]:
        """The decoder's token-to-image attentions, in order, the final one last."""

    @abstractmethod
    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        """Query projection, key projection and head count of a token-to-image attention."""

    @abstractmethod
    def lean(self) -> dict[type, type[Graft]]:
        """Classes of the host that compute what nobody reads, what is known already, or could compute faster to the
        same effect, with the mixins that do not."""

    def wasteful(self) -> list[tuple[nn.Module, type[Graft]]]:
        """Modules of the `lean` classes in image encoder and memory attention, each with its mixin."""
        lean, parts = self.lean(), (self.image_encoder(), self.memory_attention())
        modules = (module for part in parts for module in part.modules())
        return [(module, lean[host_class(module)]) for module in modules if host_class(module) in lean]

    def mask_decoder(self) -> nn.Module | None:
        """The mask decoder where it must be grafted, else None."""
        return None

    @abstractmethod
    def decoder_module(self) -> nn.Module:
        """The mask decoder. It takes the conditioned features as `image_embeddings` [B, C, h, w]; masks come first."""

    def decoder_calls(self) -> list[nn.Module]:
        """The mask decoder, and those of its modules that the host calls by themselves."""
        return [self.decoder_module()]

    @property
    @abstractmethod
    def current_argument(self) -> str:
        """Name of the argument by which memory attention takes the current features."""

    @abstractmethod
    def stride16(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [1, 3, S, S] -> the encoder's stride-16 feature as memory attention takes it, [T, 1, C]."""

    @abstractmethod
    def base_id(self) -> tuple[str | None, str | None]:
        """Hub id (or path) and revision of the model, where the host knows them."""

    def span(self) -> SpanInfo:
        """Where the routed span lies, see `find_span`."""
        infos = [self.block_info(index) for index in range(len(self.blocks()))]
        return find_span(infos, self.stage_starts(), self.patch_stride(), self.image_size())

    def shortcut_module(self, span: SpanInfo) -> Shortcut:
        """The shortcut branch of a model under surgery."""
        return self.blocks()[span.entry].get_submodule("shortcut")  # type: ignore[return-value]


def finite(tensor: Tensor) -> bool:
    """Whether every element is finite."""
    return bool(torch.isfinite(tensor).all())
