"""What has been done to one model, and the call of it in progress."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from surgery.core.access import is_paused, replaced
from surgery.core.evidence import EvidenceSettings
from surgery.core.operation import Bound, Operation
from surgery.core.ownership import Structure
from surgery.core.parts import Part
from surgery.core.session import Generation, SessionHandle, SessionStats, VideoState

if TYPE_CHECKING:
    from surgery.core.frame import FrameContext
    from surgery.core.host import HostView
    from surgery.core.observer import Observer
    from surgery.recipe import Recipe

B = TypeVar("B", bound=Bound[Any])
Run = Callable[..., Any]


class Site:
    """What runs at one module. surgery: which it is a part of; a copy of the module without its model is part of none,
    and runs as stock. index: its number at its seams. runs: by seam, outermost first. added: names of the modules that
    operations add to modules of the host.
    """

    surgery: Surgery | None

    def __init__(self, surgery: Surgery, index: int | str) -> None:
        self.surgery, self.index = surgery, index
        self.runs: dict[str, tuple[Run, ...]] = {}
        self.added = tuple(bound.learned[1] for bound in surgery.bound if bound.learned is not None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "surgery": None, "runs": {}}

    def add(self, seam: str, run: Run | None) -> None:
        """`run` runs at a seam, inside of what runs there already."""
        if run is not None:
            self.runs[seam] = (*self.runs.get(seam, ()), run)

    @property
    def number(self) -> int:
        """The index of a module at a seam of several."""
        assert isinstance(self.index, int)
        return self.index

    @property
    def context(self) -> FrameContext | None:
        """Of the call in progress."""
        return self.surgery.context if self.surgery is not None else None

    @property
    def enabled(self) -> bool:
        """False for callers inside `disabled`."""
        return self.surgery is not None and self.surgery.enabled


class RootSite(Site):
    """Of the model itself, whose copies have a surgery of their own with all its sites."""

    surgery: Surgery

    def __getstate__(self) -> dict[str, Any]:
        sites = [vars(module)["_surgery"] for module in self.surgery.patched]
        return {**vars(self), "others": [(site, site.runs) for site in sites if site is not self]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        others = state.pop("others")
        vars(self).update(state)
        for site, runs in others:
            site.surgery, site.runs = self.surgery, runs


class Surgery:
    """What has been done to one model.

    host: the model through its host. recipe: what it is under. bound: the recipe's operations. patched: modules with a
    class of ours. states: live states of videos. context: of the call in progress; threads that share a model take
    turns frame by frame. observer: see `Observer`. stats: of the session that ran last. plain: see `plain_parts`.
    adapter: where trained weights came from. A copy of the model has a surgery of its own, of no video yet.
    """

    def __init__(self, host: HostView) -> None:
        self.host = host
        self.recipe: Recipe | None = None
        self.bound: tuple[Bound[Any], ...] = ()
        self.patched: list[nn.Module] = []
        self.structure = Structure()
        self.adapter: str | None = None
        self._start()

    def _start(self) -> None:
        self.states: weakref.WeakKeyDictionary[VideoState, Any] = weakref.WeakKeyDictionary()
        self.generation = Generation(self.states)
        self.context: FrameContext | None = None
        self.observer: Observer | None = None
        self.stats: SessionStats | None = None
        self.plain = False

    def __getstate__(self) -> dict[str, Any]:
        of_calls = {"states", "generation", "context", "observer", "stats", "plain"}
        return {name: value for name, value in vars(self).items() if name not in of_calls}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def enabled(self) -> bool:
        """False for callers inside `disabled`."""
        return not is_paused(self)

    @property
    def fixed_shapes(self) -> bool:
        """Whether the shapes of a routed frame must not depend on what is chosen."""
        return self.recipe is not None and any(operation.fixed_shapes for operation in self.recipe.operations)

    @property
    def notes_memory_frames(self) -> bool:
        """Whether an operation needs to know which frames memory attention is handed."""
        return any(bound.needs_memory_frames for bound in self.bound)

    def root_runs(self, seam: str) -> tuple[Run, ...]:
        """What runs at a seam of the model itself."""
        site: Site = vars(self.host.model)["_surgery"]
        return site.runs.get(seam, ())

    def find(self, kind: type[B]) -> B | None:
        """The bound operation of this class, or None."""
        return next((bound for bound in self.bound if isinstance(bound, kind)), None)

    def evidence(self) -> EvidenceSettings | None:
        """How evidence is made; None where no operation needs it. Raises RecipeError where two want different kinds."""
        return wanted_evidence([bound.settings for bound in self.bound])

    def state_of(self, handle: SessionHandle) -> VideoState:
        """The video state of a session, made anew when absent or when it belongs to another surgery."""
        state = handle.state()
        if state is None or state.generation is not self.generation:
            if state is not None:
                handle.unguard(state)
            state = VideoState(generation=self.generation)
            handle.holder[handle.key] = state
            self.states[state] = handle.home()
        self.stats = state.stats
        return state

    def release_sessions(self) -> None:
        """Leave nothing of this surgery in any session: neither a state nor approximate features."""
        for state in list(self.states):
            for handle in self.host.sessions_of(state, self.states[state]):
                handle.unguard(state)
                handle.holder.pop(handle.key, None)
        self.states.clear()

    def within(self, context: FrameContext | None) -> AbstractContextManager[None]:
        """Inside, this is the call in progress; None: modules run as stock does, and nothing of it is noted."""
        return replaced(self, "context", context)

    def plain_parts(self) -> AbstractContextManager[None]:
        """Inside, no operation runs around a part as a whole: what is fitted or counted is so in the stock precision,
        and not compiled."""
        return replaced(self, "plain", True)

    def observed_by(self, observer: Observer) -> AbstractContextManager[None]:
        """Inside, `observer` looks on."""
        return replaced(self, "observer", observer)

    @contextmanager
    def inside(self, part: Part, device: str) -> Iterator[None]:
        """For what an operation computes with modules of a part between the host's calls: as the part itself runs.

        device: type of the tensors.
        """
        with ExitStack() as stack:
            for bound in () if self.plain else self.bound:
                stack.enter_context(bound.inside(part, device))
            yield


def wanted_evidence(operations: Sequence[Operation]) -> EvidenceSettings | None:
    """What all of them need of the frame before, together. Raises RecipeError, see `EvidenceSettings.beside`."""
    found = None
    for operation in operations:
        if operation.evidence is not None:
            found = operation.evidence.beside(found)
    return found
