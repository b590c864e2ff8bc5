"""One case, start to end: two models side by side on one clip, and what each of their frames costs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from surgery.bench import figures
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.identity import identity, kept, totals
from surgery.bench.modules import fixed_windows, module_names, probed
from surgery.bench.pair import Pair, inference, plain, stepped, twins
from surgery.bench.probe import REST, FlopMeter, Meter, Probe, TimeMeter
from surgery.bench.settings import Settings
from surgery.core.driver import follow
from surgery.recipe import Recipe

if TYPE_CHECKING:
    from surgery.adapters.files import AnyAdapter

Step = Callable[[], None]
_Two = tuple[list[float], list[float]]


@dataclass
class Timings:
    """What one case measured. `row` is its JSON row, whose fields docs/bench.md lists; the properties sum it up."""

    row: dict[str, Any] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Stock / sparse time of a whole frame, see `surgery.bench.figures.speedup`."""
        return float(self.row["whole_frame_speedup"])

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of `speedup`; None when a single frame was counted."""
        ends = self.row["interval"]
        return (ends[0], ends[1]) if ends else None

    @property
    def predicted(self) -> float | None:
        """Dense / sparse FLOPs of a whole frame; None when no frame was counted."""
        value = self.row["predicted"]
        return None if value is None else float(value)

    def __str__(self) -> str:
        dense, sparse = self.row["dense"]["median"], self.row["sparse"]["median"]
        text = f"{dense:.1f} -> {sparse:.1f} ms per frame, {self.speedup:.2f}x"
        if self.interval is not None:
            text += " [{:.2f}, {:.2f}]".format(*self.interval)
        return text if self.predicted is None else f"{text}; FLOPs predict {self.predicted:.2f}x"


def benchmark(
    model: Any, recipe: str | Path | Recipe | None = None, *, adapter: str | Path | AnyAdapter | None = None,
    settings: Settings | None = None, step: Step = lambda: None,
) -> Timings:  # fmt: skip
    """Time a model against itself under surgery, on a synthetic clip, in this process. `model` is not changed.

    Args:
        model: as for `sparsify`, stock or under surgery.
        recipe, adapter: as for `sparsify`; without them a model under surgery keeps its own.
        settings: of the case; default one object, fp32, the router's own windows, 20 frames a model.
        step: called after every tracked frame, `frame_count(settings)` times.

    Raises:
        BenchmarkError: a setting that is out of range, or that host, recipe or device cannot do.
        UnsupportedModelError, RecipeError, AdapterError: as `sparsify`.
    """
    settings = settings or Settings()
    pair = twins(model, recipe, adapter, settings)
    case = _Case(pair, settings, step)
    # The collector is stopped while measuring: a pass of it in one model's frame would count for that model.
    gc.collect()
    gc.disable()
    try:
        with inference(pair.device), fixed_windows(pair.sparse, settings.windows) as windows:
            return Timings(case.run(windows))
    finally:
        gc.enable()


def frame_count(settings: Settings) -> int:
    """How many times `benchmark` calls `step`."""
    counting = 1 if settings.module_frames else 0
    return 2 * (1 + settings.warm + settings.frames + settings.module_frames + counting)


class _Case:
    def __init__(self, pair: Pair, settings: Settings, step: Step) -> None:
        self.pair, self.settings, self.step = pair, settings, step
        self.clock = Clock(pair.device, settings.clock == "processor")
        side, length = pair.sparse.host.image_size(), frame_count(settings) // 2
        clip = LoopingClip(side, length, settings.objects, pair.device, settings.seed)
        self.runs = [
            stepped(follow(host, clip, clip.masks), pair.device, settings, own)
            for host, own in zip(pair.hosts(), (False, pair.own), strict=True)
        ]
        self.peaks = [0.0, 0.0]

    def run(self, windows: tuple[int, ...] | None) -> dict[str, Any]:
        settings = self.settings
        first = [self._frame(which) for which in (0, 1)]
        warm = self._alternate(settings.warm)
        self.peaks = [0.0, 0.0]
        before = totals(self.pair.sparse)
        series = self._alternate(settings.frames)
        shares = kept(self.pair.sparse, before, windows is not None)
        tables = {"ms": self._spans(lambda: TimeMeter(self.clock), settings.module_frames)}
        if settings.module_frames:
            # One frame with attention written out as matrix products, and not compiled.
            counter = FlopCounterMode(display=False)
            with plain(self.pair), sdpa_kernel(SDPBackend.MATH), counter:
                tables["gflop"] = self._spans(lambda: FlopMeter(counter), 1)
        return self._row(first, warm, series, tables) | shares

    def _frame(self, which: int) -> float:
        self.clock.reset_peak()
        # A mask is had when it is in the host's memory, one byte a pixel.
        _, ms = self.clock.timed(lambda: (next(self.runs[which]) > 0).cpu())
        self.peaks[which] = max(self.peaks[which], self.clock.peak_mb())
        self.step()
        return ms

    def _alternate(self, frames: int) -> _Two:
        times: _Two = ([], [])
        for which in _turns(frames):
            times[which].append(self._frame(which))
        return times

    def _spans(self, meter: Callable[[], Meter], frames: int) -> tuple[dict[str, float], dict[str, float]]:
        """Mean per frame of every part, by what `meter` reads."""
        probes = [Probe(meter()), Probe(meter())]
        inside = self.settings.compile == "none"
        for which in _turns(frames):
            probe = probes[which]
            with probed(self.pair.hosts()[which], self.pair.surgeries()[which], probe, inside):
                self.clock.synchronise()
                with probe.span(REST):
                    (next(self.runs[which]) > 0).cpu()
                    self.clock.synchronise()
            probe.settle()
            self.step()
        dense, sparse = ({name: value / frames for name, value in probe.totals.items()} for probe in probes)
        return dense, sparse

    def _row(
        self, first: list[float], warm: _Two, series: _Two,
        tables: dict[str, tuple[dict[str, float], dict[str, float]]],
    ) -> dict[str, Any]:  # fmt: skip
        settings, sparse = self.settings, self.pair.sparse
        ratio, interval = figures.speedup(series)
        gflop = [sum(table.values()) for table in tables.get("gflop", ())]
        predicted = gflop[0] / gflop[1] if gflop else None
        compiled = settings.compile != "none"
        row: dict[str, Any] = {
            **identity(self.pair, settings),
            "whole_frame_speedup": ratio,
            "interval": list(interval or ()),
            "predicted": predicted,
            "measured_over_predicted": None if predicted is None else ratio / predicted,
            "modules": figures.module_rows(module_names(sparse.host, sparse), tables) if settings.module_frames else [],
            "latency": [],
            "memory_kind": self.clock.memory_kind,
            "peak_memory_mb": max(self.peaks),
        }
        for which, name in enumerate(("dense", "sparse")):
            side = figures.latency(series[which])
            spent = max(0.0, first[which] + sum(warm[which]) - side["median"] * (1 + settings.warm)) / 1000
            row[name] = {
                **side, "first": first[which], "frames": len(series[which]), "peak_memory_mb": self.peaks[which],
                "compile_s": spent if compiled else None,
            }  # fmt: skip
            row["latency"].append({"name": name, "ms": [round(value, 4) for value in series[which]]})
        row["compile_s"] = row["dense"]["compile_s"] + row["sparse"]["compile_s"] if compiled else None
        return row


def _turns(frames: int) -> Iterator[int]:
    """Which model tracks next, each of them `frames` times: neither always follows the other."""
    return (which for number in range(frames) for which in ((0, 1), (1, 0))[number % 2])
