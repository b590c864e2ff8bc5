"""Parts of the model recorded with CUDA graphs and replayed: no launches one by one, the kernels and bits of eager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from surgery.core.operation import Bound, Operation, OwnWork, Patch
from surgery.core.parts import PARTS, SomeParts
from surgery.core.region import Given, Record, Region, UnfitError, kind_of
from surgery.core.surgery import Surgery
from surgery.core.values import tensors

SIGHTINGS = 2
"""Calls of a kind that run as they are before it is recorded: kernels are chosen and their memory is found by then."""

MOST_SEEN = 256
"""Kinds of call that are remembered before they are recorded."""


class CudaGraphs(Operation):
    """Parts of the model recorded with CUDA graphs and replayed (docs/cuda-graphs.md). Masks stay the same, bit by bit.

    On other devices nothing is recorded, and `status` says so.
    """

    type: Literal["cuda_graphs"] = "cuda_graphs"
    parts: SomeParts = Field(PARTS, description="what is recorded; the prompt encoder never is")
    limit: int = Field(8, ge=1, le=64, description="most recordings of one part; further kinds of call run as they are")

    alias: ClassVar[str] = "graphs"
    # Outside of `compile`: what inductor made is recorded.
    order: ClassVar[int] = -5
    fixed_shapes: ClassVar[bool] = True

    def beside(self, others: Sequence[Operation]) -> None:
        """See `Operation.beside`: nothing else may record CUDA graphs inside."""
        for other in others:
            mode = getattr(other, "mode", None)
            if mode in ("reduce-overhead", "max-autotune"):
                raise ValueError(
                    f"cuda_graphs beside {other.type} in mode {mode!r}, which records CUDA graphs itself; use mode "
                    "'default' or 'max-autotune-no-cudagraphs'"
                )

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        return "recorded with CUDA graphs"

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Recordings:
        """See `Operation.bind`."""
        return Recordings(self, surgery)


class CudaRecorder:
    """Records with CUDA graphs, all in one pool of memory: what is returned is held, the rest is used again."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
        """See `Record`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = run(inputs)

        def play() -> list[Tensor]:
            graph.replay()
            return found

        return play


class Recordings(OwnWork[CudaGraphs]):
    """What is recorded of one model. Never copied: a copy of the model makes its own.

    calls: of every part, how many were replayed, and how many ran as they are, by the reason. seen: how often each kind
    of call came. recorders: what makes a recording, by type of device.
    """

    def _start(self) -> None:
        self.calls: dict[str, Counter[str]] = {part: Counter() for part in self.settings.parts}
        self.recorders: dict[str, Record] = {"cuda": CudaRecorder()}
        self._regions: dict[Any, Region] = {}
        self.seen: Counter[Any] = Counter()
        self._unfit: dict[Any, str] = {}

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield from (Patch("forward", self._run, part) for part in self.settings.parts)

    def undone(self) -> None:
        """See `Bound.undone`: recordings hold device memory."""
        self._start()

    def recorded(self, kind: Any) -> bool:
        """Whether there is a recording of this kind of call."""
        return kind in self._regions

    def _run(
        self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], proceed: Callable[..., Any]
    ) -> Any:
        """A part's forward, replayed where this kind of call has been recorded."""
        given = Given.of(self.surgery, args, kwargs)
        found = self._why_not(given) or self._region(part, module, given, proceed)
        if isinstance(found, Region):
            self.calls[part]["replayed"] += 1
            return found(given)
        self.calls[part][found] += 1
        return proceed(args, kwargs)

    def _why_not(self, given: Given) -> str | None:
        if torch.compiler.is_compiling() or self.surgery.observer is not None or torch.is_grad_enabled():
            return "watched"
        devices = {each.device for each in tensors(given)}
        if len(devices) != 1 or next(iter(devices)).type not in self.recorders:
            return f"on {', '.join(sorted(str(each) for each in devices))}"
        return None

    def _region(self, part: str, module: nn.Module, given: Given, proceed: Callable[..., Any]) -> Region | str:
        """The recording for this call, made now if it is time to; or why there is none."""
        kind = kind_of(part, given)
        region = self._regions.get(kind)
        if region is not None and region.current():
            return region
        if kind in self._unfit:
            return self._unfit[kind]
        if region is None:
            if len(self.seen) >= MOST_SEEN:
                self.seen.clear()
            self.seen[kind] += 1
            if self.seen[kind] <= SIGHTINGS:
                return "new shape"
            if sum(known[0] == part for known in self._regions) >= self.settings.limit:
                return "too many shapes"
        record = self.recorders[next(tensors(given)).device.type]
        constants = [each for bound in self.surgery.bound for each in bound.constants()]
        try:
            region = self._regions[kind] = Region(self.surgery, module, given, proceed, record, constants)
        except UnfitError as error:
            self._unfit[kind] = str(error)
            return str(error)
        return region
