"""Several recipes against one baseline in one process: frame by frame in rotating order, share after share."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from surgery.api import sparsify
from surgery.bench import figures
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.identity import identity, kept, totals
from surgery.bench.modules import fixed_windows, module_names, probed
from surgery.bench.pair import (
    Pair,
    check_host,
    compile_operation,
    compiled_alone,
    inference,
    plain,
    stepped,
    twin,
)
from surgery.bench.probe import REST, FlopMeter, Meter, Probe, TimeMeter
from surgery.bench.settings import BenchmarkError, Settings
from surgery.core.driver import follow
from surgery.core.host import HostView
from surgery.core.operation import Operation
from surgery.core.surgery import Surgery
from surgery.engine import current_surgery, require_surgery
from surgery.hosts import view_of
from surgery.hosts.sam21 import SIZES
from surgery.operations import CompileParts
from surgery.operations.precision import BoundPrecision
from surgery.recipe import Recipe

Rows = list[dict[str, Any]]
_STOCK = 0


class Arms:
    """A baseline and one model per recipe, all on the weights of `model`, which is not changed.

    Args:
        model: a stock model of either host. recipes: what the arms run.
        settings: objects, precision (by autocast), compile, frames, warm, module_frames, seed. Windows are forced by
            `run`, where a recipe routes any.
        baseline: what the arms are compared with; default `model` as it is. A predictor that compiles itself (sam2's
            VOS predictor) takes the weights of `model`.
        step: called after every round, in which each model tracks one frame.

    Raises:
        BenchmarkError: a setting that arms do not take, or that the host cannot do.
    """

    def __init__(
        self, model: Any, recipes: Sequence[Recipe], settings: Settings, baseline: Any | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        if settings.windows is not None or settings.cast != "autocast":
            raise BenchmarkError("arms take their window shares from run, and autocast only")
        check_host(view_of(model), settings)
        if baseline is not None:
            baseline.load_state_dict(model.state_dict(), assign=True)
        self.settings, self.step = settings, step
        self.compiles_itself = baseline is not None
        operation = compile_operation(settings, next(model.parameters()).device)
        stock = _baseline(model, baseline, operation)
        dense, compiled = view_of(stock), current_surgery(stock)
        self.device = next(model.parameters()).device
        plain = [recipe.without(CompileParts) for recipe in recipes]
        asked = plain if operation is None else [recipe.with_operation(operation) for recipe in plain]
        cuts = [require_surgery(sparsify(twin(model), recipe)) for recipe in asked]
        owns = [cut.find(BoundPrecision) is not None for cut in cuts]
        self.pairs = [Pair(dense, cut, self.device, own, compiled) for cut, own in zip(cuts, owns, strict=True)]
        self.hosts: list[HostView] = [dense, *(cut.host for cut in cuts)]
        self.surgeries: list[Surgery | None] = [compiled, *cuts]
        self.clock = Clock(self.device, settings.clock == "processor")

    def run(self, shares: Sequence[float], done: Callable[[float, Rows], None]) -> None:
        """Fill the memory banks once, then measure one share of the windows after another on the same sessions.

        Args:
            shares: of the stage-3 windows, each in (0, 1].
            done: called after each share with it and its rows, one per recipe in their order.

        Raises:
            BenchmarkError: a share out of range.
        """
        for share in shares:
            if not 0 < share <= 1:
                raise BenchmarkError(f"windows {share!r}: expected a share above 0 and up to 1")
        settings = self.settings
        length = 1 + settings.warm + len(shares) * (2 + settings.frames + settings.module_frames)
        clip = LoopingClip(self.hosts[_STOCK].image_size(), length, settings.objects, self.device, settings.seed)
        # The collector is stopped while measuring: a pass of it in one model's frame would count for that model.
        gc.collect()
        gc.disable()
        try:
            with inference(self.device):
                self.runs: list[Iterator[Tensor]] = [
                    stepped(follow(host, clip, clip.masks), self.device, settings, own)
                    for host, own in zip(self.hosts, (False, *(pair.own for pair in self.pairs)), strict=True)
                ]
                with self._forced(shares[0]):
                    self._rounds(1 + settings.warm)
                for share in shares:
                    with self._forced(share):
                        rows = self._share(share)
                    gc.collect()
                    done(share, rows)
        finally:
            gc.enable()

    def _share(self, share: float) -> Rows:
        settings = self.settings
        self._rounds(1)  # the first frame of new shapes is not like the others
        before = [totals(pair.sparse) for pair in self.pairs]
        series = self._rounds(settings.frames)
        shares = [kept(pair.sparse, one, True) for pair, one in zip(self.pairs, before, strict=True)]
        ms = self._spans(lambda: TimeMeter(self.clock), settings.module_frames)
        counter = FlopCounterMode(display=False)
        with ExitStack() as stack:
            for pair in self.pairs:
                stack.enter_context(plain(pair))
            with sdpa_kernel(SDPBackend.MATH), counter:
                gflop = self._spans(lambda: FlopMeter(counter), 1)
        return [self._row(arm, share, series, ms, gflop, one) for arm, one in enumerate(shares, start=1)]

    @contextmanager
    def _forced(self, share: float) -> Iterator[None]:
        with ExitStack() as stack:
            for pair in self.pairs:
                stack.enter_context(fixed_windows(pair.sparse, share))
            yield

    def _rounds(self, count: int) -> list[list[float]]:
        return in_turn(self.runs, self.clock, count, self.step)

    def _spans(self, meter: Callable[[], Meter], count: int) -> list[dict[str, float]]:
        """Mean per frame of every part, by model."""
        probes = [Probe(meter()) for _ in self.hosts]
        inside = self.settings.compile == "none" and not self.compiles_itself
        for number in range(count):
            for arm in _order(number, len(self.hosts)):
                with probed(self.hosts[arm], self.surgeries[arm], probes[arm], inside):
                    self.clock.synchronise()
                    probes[arm].enter(REST)
                    (next(self.runs[arm]) > 0).cpu()
                    self.clock.synchronise()
                    probes[arm].leave()
                probes[arm].settle()
            self.step()
        return [{name: value / count for name, value in probe.totals.items()} for probe in probes]

    def _row(
        self, arm: int, share: float, series: list[list[float]], ms: list[dict[str, float]],
        gflop: list[dict[str, float]], shares: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        pair = self.pairs[arm - 1]
        cut, recipe = pair.sparse, pair.sparse.recipe
        assert recipe is not None
        ratio, interval = figures.speedup((series[_STOCK], series[arm]))
        predicted = sum(gflop[_STOCK].values()) / sum(gflop[arm].values())
        tables = {"ms": (ms[_STOCK], ms[arm]), "gflop": (gflop[_STOCK], gflop[arm])}
        return {
            **identity(pair, self.settings),
            "baseline": "vos" if self.compiles_itself else "stock",
            "operations": [each.type for each in recipe.operations if not isinstance(each, CompileParts)],
            "windows_share": share if shares["windows"] is not None else None,
            **shares,
            "whole_frame_speedup": ratio,
            "interval": list(interval or ()),
            "predicted": predicted,
            "measured_over_predicted": ratio / predicted,
            "dense": figures.latency(series[_STOCK]),
            "sparse": figures.latency(series[arm]),
            "modules": figures.module_rows(module_names(cut.host, cut), tables) if self.settings.module_frames else [],
            "latency": [
                {"name": name, "ms": [round(value, 4) for value in series[which]]}
                for name, which in (("dense", _STOCK), ("sparse", arm))
            ],
        }


def in_turn(
    runs: Sequence[Iterator[Tensor]], clock: Clock, count: int, step: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Milliseconds of `count` frames of every run, taken in rotating order; `step` is called after every round."""
    series: list[list[float]] = [[] for _ in runs]
    for number in range(count):
        for arm in _order(number, len(runs)):
            # A mask is had when it is in the host's memory.
            series[arm].append(clock.timed(lambda arm=arm: (next(runs[arm]) > 0).cpu())[1])  # type: ignore[misc]
        step()
    return series


def _order(number: int, count: int) -> list[int]:
    """Who goes when: rotating, and the other way round every second turn, so that no model follows the same one."""
    arms = list(range(count))
    first = number % count
    turned = arms[first:] + arms[:first]
    return turned if number // count % 2 == 0 else turned[::-1]


def rounds(settings: Settings, shares: int) -> int:
    """How many times `Arms.run` calls `step`."""
    return 1 + settings.warm + shares * (2 + settings.frames + settings.module_frames)


def _baseline(model: Any, baseline: Any | None, operation: Operation | None) -> Any:
    """The stock model, compiled by the operation alone; a baseline of its own is left as it compiles itself."""
    if baseline is not None:
        return baseline
    stock = twin(model)
    return stock if operation is None else sparsify(stock, compiled_alone(operation))


def model_spec(text: str) -> str:
    """What `load_model` takes: a size stands for its model with random weights; all else is one already."""
    return f"random:{text}" if text in SIZES else text


def give_back(device: torch.device) -> None:
    """Free what the last models held before the next ones are made, and return it to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
