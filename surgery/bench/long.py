"""A long video, stock and then sparse: whether memory and time per frame stay where they are."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from surgery.bench import figures
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.identity import Kept, identity
from surgery.bench.modules import fixed_windows
from surgery.bench.pair import Pair, inference, stepped
from surgery.bench.settings import Settings
from surgery.core.driver import follow

if TYPE_CHECKING:
    from surgery.bench.measure import Step


def long_run(pair: Pair, settings: Settings, step: Step) -> dict[str, Any]:
    """Track `settings.long` frames with each model, one after the other, so that neither one's memory counts for both.

    Returns:
        A row like that of a short case; `memory_over_time` has, per model, MB above the start of its run, by frame.
        Masks are not kept. `whole_frame_speedup` is of two runs one after the other, not in turn.
    """
    clock = Clock(pair.device, settings.clock == "processor")
    clip = LoopingClip(pair.sparse.host.image_size(), settings.long, settings.objects, pair.device, settings.seed)
    series: list[list[float]] = []
    memory = []
    with inference(pair.device), fixed_windows(pair.sparse, settings.windows) as windows:
        for which, view in enumerate(pair.hosts()):
            own = bool(which) and pair.own
            run = stepped(follow(view, clip, clip.masks), pair.device, settings, own)
            ms, used = _run(run, len(clip), clock, step)
            series.append(ms)
            memory.append(used)
    skipped = min(1 + settings.warm, settings.long - 2)
    dense, sparse = (ms[skipped:] for ms in series)
    ratio, interval = figures.speedup((dense, sparse))
    row: dict[str, Any] = {
        **identity(pair, settings),
        "long": settings.long,
        "windows": Kept.of(pair.sparse).windows(pair.sparse, windows),
        "keys": Kept.of(pair.sparse).keys(pair.sparse.host),
        "queries": Kept.of(pair.sparse).queries(pair.sparse.host),
        "whole_frame_speedup": ratio,
        "interval": list(interval or ()),
        "predicted": None,
        "measured_over_predicted": None,
        "modules": [],
        "latency": [],
        "compile_s": None,
        "memory_kind": clock.memory_kind,
        "memory_over_time": [],
        "peak_memory_mb": clock.peak_mb(),
    }
    for name, ms, used in zip(("dense", "sparse"), (dense, sparse), memory, strict=True):
        tenth = max(1, len(ms) // 10)
        row[name] = {
            **figures.latency(ms), "first": series[0 if name == "dense" else 1][0], "frames": len(ms),
            "median_first_tenth": figures.latency(ms[:tenth])["median"],
            "median_last_tenth": figures.latency(ms[-tenth:])["median"],
            "memory_growth_mb": used[-1] - used[min(skipped, len(used) - 1)],
        }  # fmt: skip
        frames, values = figures.thinned(used)
        row["memory_over_time"].append({"name": name, "frame": frames, "mb": [round(value, 2) for value in values]})
        frames, values = figures.thinned(ms)
        shown = [frame + skipped for frame in frames]
        row["latency"].append({"name": name, "frame": shown, "ms": [round(value, 4) for value in values]})
    return row


def _run(run: Iterator[Tensor], frames: int, clock: Clock, step: Step) -> tuple[list[float], list[float]]:
    gc.collect()
    clock.give_back()
    start = clock.memory_mb()
    ms, used = [], []
    for _ in range(frames):
        ms.append(clock.timed(lambda: (next(run) > 0).cpu())[1])
        used.append(clock.memory_mb() - start)
        step()
    run.close()  # type: ignore[attr-defined]
    return ms, used
