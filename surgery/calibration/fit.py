"""Fit the shortcut of a model under surgery: closed form first, then steps against the dense model as teacher.

`accelerate` carries it: one CPU or GPU, or `accelerate launch` over many, where every process takes its own clips and
gradients are averaged. The same seed gives the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgery.calibration.clips import CalibrationClip
from surgery.calibration.linear import ResidualRegression, has_closed_form, start_from
from surgery.calibration.replay import OBJECTIVES, Sample, segments, student_error
from surgery.calibration.stages import StageRegressions
from surgery.core.observer import Observer
from surgery.core.surgery import Surgery
from surgery.engine import require_surgery
from surgery.errors import CalibrationError, ModelStateError, nearest
from surgery.missing import require
from surgery.operations.window_routing.bound import SpanSeen, WindowRouter, require_router
from surgery.progress import Counter
from surgery.tracking import track


@dataclass(frozen=True)
class FitSettings:
    """How a shortcut is fitted.

    objective: see `student_error`. steps: gradient steps after the closed form, each over `accumulate` segments; 0:
    none. rate: AdamW learning rate, falling to zero as a cosine. segment: frames of a segment, the first of which is
    dense. mixed_precision: "no", "bf16" or "fp16", as in accelerate; a model in half precision is always trained under
    autocast with fp32 shortcut weights. seed: of clip order and of the windows drawn.
    """

    objective: str = "memory"
    steps: int = 200
    rate: float = 3e-4
    segment: int = 4
    accumulate: int = 1
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise CalibrationError(
                f"objective {self.objective!r}{nearest(self.objective, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}"
            )
        if self.steps < 0 or self.segment < 2 or self.accumulate < 1 or not self.rate > 0:
            raise CalibrationError(f"{self}: expected steps >= 0, segment >= 2, accumulate >= 1 and rate > 0")


@dataclass
class FitResult:
    """What fitting did. explained: share of the residual's energy (of its change, with a temporal shortcut) that the
    closed form explains on the clips it was fitted to, None without one. stages: the same of the correction of every
    stage before the span. loss: (step, loss) of every step. frames:
    frames the closed form saw.
    """

    explained: float | None = None
    stages: list[float] = field(default_factory=list)
    loss: list[tuple[int, float]] = field(default_factory=list)
    frames: int = 0


def fit_shortcut(
    model: Any,
    clips: Sequence[CalibrationClip],
    settings: FitSettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    save_every: int = 50,
    closed_form: bool = True,
    step: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> FitResult:
    """Fit the shortcut of `model` in place.

    Args:
        model: a model under surgery whose recipe routes windows.
        clips: with prompts. Streamed; memory does not grow with their length.
        settings: default `FitSettings()`.
        checkpoint: file to resume from and to save to every `save_every` steps. One of another model, recipe, set of
            clips or settings is refused.
        closed_form: start from the closed form; False starts from the weights the shortcut has.
        step: called with (phase, done, total) as work goes on.

    Raises:
        ModelStateError: the model is not under surgery, or its shortcut has nothing to fit.
        CalibrationError: features or loss that are not finite (the last good weights stay, and are saved), or a
            checkpoint of another run.
    """
    require("accelerate")
    from accelerate import Accelerator

    settings = settings or FitSettings()
    surgery = require_surgery(model)
    router = surgery.find(WindowRouter)
    if router is None:
        raise ModelStateError("this recipe has no window routing, so there is no shortcut to fit")
    shortcut, learns = router.shortcut, router.learns
    if not learns and shortcut.corrections is None:
        raise ModelStateError(
            "nothing to fit: the identity shortcut has no weights, and with span: tiles and early: 0 skipped windows "
            "reuse their last output; choose skipped.shortcut.type bottleneck, ffn or attention, or "
            "stages.correction: patch"
        )
    device, dtype = next(shortcut.parameters()).device, next(shortcut.parameters()).dtype
    precision = settings.mixed_precision
    if precision == "no" and dtype in (torch.bfloat16, torch.float16):
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    mine = list(clips[accelerator.process_index :: accelerator.num_processes])
    if not mine:
        raise CalibrationError(
            f"{len(clips)} clips for {accelerator.num_processes} processes, expected at least as many"
        )
    result = FitResult()
    saved = _Checkpoint(Path(checkpoint), surgery, clips, settings) if checkpoint is not None else None
    state = saved.load(device) if saved is not None else None
    with surgery.plain_parts():
        if state is None and closed_form and (has_closed_form(shortcut) or shortcut.corrections is not None):
            result = _closed_form(router, mine, accelerator, step)
        with _trainable(model, shortcut):
            if settings.steps and learns:
                _run_steps(surgery, mine, settings, accelerator, result, saved, state, save_every, step)
    shortcut.to(dtype)
    surgery.adapter = f"fitted on {len(clips)} clips"
    return result


def feature_error(
    model: Any, clips: Sequence[CalibrationClip], objective: str = "memory", segment: int = 4, seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> float:  # fmt: skip
    """Mean `student_error` over the clips with the shortcut as it is; smaller is better, 0 is the dense model. `step`
    is called after every clip."""
    surgery = require_surgery(model)
    errors = []
    with torch.no_grad(), surgery.plain_parts():
        for number, clip in enumerate(clips):
            for samples in segments(surgery, clip, segment, (seed, 1, number), objective == "masks"):
                if any(sample.windows is not None for sample in samples[1:]):
                    errors.append(float(student_error(surgery, samples, objective)))
            step()
    if not errors:
        raise CalibrationError(f"no clip has a segment of {segment} frames, expected at least one")
    return statistics.fmean(errors)


class _Sums(Observer):
    def __init__(self, sums: ResidualRegression | None, stages: StageRegressions | None) -> None:
        self.sums, self.below, self.frames = sums, stages, 0

    def start(self) -> None:
        """A new clip begins."""
        for regression in (self.sums, self.below):
            if regression is not None:
                regression.start()

    def noted(self, what: Any) -> None:
        if not isinstance(what, SpanSeen):
            return
        if self.below is not None and what.maps:
            self.below.add(list(what.maps))
        if self.sums is not None:
            self.sums.add(what.entering.flatten(0, 2), what.leaving.flatten(0, 2))
        self.frames += 1


def _closed_form(
    router: WindowRouter, clips: list[CalibrationClip], accelerator: Any, step: Callable[[str, int, int], None]
) -> FitResult:
    shortcut, settings, surgery = router.shortcut, router.settings, router.surgery
    device = next(shortcut.parameters()).device
    # Half-precision sums lose what a regression needs; MPS has no fp64, so there the sums live on the CPU.
    place = torch.device("cpu") if device.type == "mps" else device
    sums = stages = None
    if settings.uses_shortcut and has_closed_form(shortcut):
        sums = ResidualRegression(shortcut.channels, settings.skipped.temporal, place)
    if shortcut.corrections is not None:
        stages = StageRegressions(shortcut.corrections, place)
    watcher = _Sums(sums, stages)
    count = Counter(step, "closed form", sum(clip.tracked for clip in clips))
    for clip in clips:
        watcher.start()
        with surgery.observed_by(watcher):
            for _ in track(surgery.host.model, clip.video, clip.prompts):
                count()

    def reduce(tensor: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(tensor, "sum")
        return reduced

    result = FitResult(frames=watcher.frames)
    if sums is not None:
        whole, ridge = sums.reduced(reduce)
        result.explained = start_from(shortcut, whole, reduce(sums.level), sums.temporal, ridge)  # type: ignore[arg-type]
    if stages is not None:
        result.stages = stages.solve(reduce)
    return result


@contextmanager
def _trainable(model: torch.nn.Module, shortcut: torch.nn.Module) -> Iterator[None]:
    """Only the shortcut learns, in fp32, in training mode off; every flag is put back."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval()
    for parameter, _ in before:
        parameter.requires_grad_(False)
    shortcut.float().requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
        model.train(training)


def _run_steps(
    surgery: Surgery, clips: list[CalibrationClip], settings: FitSettings, accelerator: Any, result: FitResult,
    saved: _Checkpoint | None, state: dict[str, Any] | None, save_every: int, step: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    shortcut = require_router(surgery).shortcut
    optimiser = torch.optim.AdamW(shortcut.parameters(), lr=settings.rate, weight_decay=0.01)
    done, position = 0, (0, 0, 0)
    if state is not None:
        shortcut.load_state_dict(state["shortcut"])
        optimiser.load_state_dict(state["optimiser"])
        done, position = state["step"], tuple(state["position"])
        result.loss, result.explained, result.frames = state["loss"], state["explained"], state["frames"]
    stream = _endless(surgery, clips, settings, position)
    while done < settings.steps:
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * 0.5 * (1 + math.cos(math.pi * done / settings.steps))
        losses = []
        for _ in range(settings.accumulate):
            position, samples = next(stream)
            with accelerator.autocast():
                loss = student_error(surgery, samples, settings.objective)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                break
            (loss / settings.accumulate).backward()
        for parameter in shortcut.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))
        norm = torch.nn.utils.clip_grad_norm_(shortcut.parameters(), 1.0)
        if not (np.isfinite(losses).all() and bool(torch.isfinite(norm))):
            if saved is not None:
                saved.save(shortcut, optimiser, done, position, result)
            where = f"; the weights after step {done} were saved to {saved.path}" if saved is not None else ""
            raise CalibrationError(f"the loss of step {done + 1} is not finite ({losses[-1]}); fitting stopped{where}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        done += 1
        result.loss.append((done, statistics.fmean(losses)))
        step("fitting", done, settings.steps)
        if saved is not None and (done % save_every == 0 or done == settings.steps) and accelerator.is_main_process:
            saved.save(shortcut, optimiser, done, position, result)


def _endless(
    surgery: Surgery, clips: list[CalibrationClip], settings: FitSettings, start: tuple[int, ...]
) -> Iterator[tuple[tuple[int, int, int], list[Sample]]]:
    """Segments for ever, with the position of the next: (epoch, clip in the epoch's order, segment)."""
    epoch, first, skip = start
    while True:
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(clips))
        found = False
        for place in range(first, len(order)):
            number = int(order[place])
            source = segments(
                surgery,
                clips[number],
                settings.segment,
                (settings.seed, 0, epoch, number),
                settings.objective == "masks",
            )
            for index, samples in enumerate(source):
                found = True
                if index >= skip:
                    yield (epoch, place, index + 1), samples
            skip = 0
        if not found and not first:
            raise CalibrationError(f"no clip has {settings.segment} frames in a row after its prompt; use longer clips")
        epoch, first = epoch + 1, 0


class _Checkpoint:
    """The state of a fit on disk, replaced in one move, and what run it belongs to."""

    def __init__(self, path: Path, surgery: Surgery, clips: Sequence[CalibrationClip], settings: FitSettings) -> None:
        from surgery.adapters.fingerprint import fingerprint

        assert surgery.recipe is not None
        self.path = path
        identity = {
            "settings": asdict(settings),
            "recipe": surgery.recipe.to_dict(),
            "clips": [(clip.name, clip.video.num_frames, list(clip.video.size)) for clip in clips],
            "base": str(fingerprint(surgery.host, require_router(surgery).span)),
        }
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:
            raise CalibrationError(
                f"{self.path}: not a readable checkpoint ({error}); remove it to start anew"
            ) from error
        if not isinstance(state, dict) or state.get("digest") != self.digest:
            raise CalibrationError(
                f"{self.path}: a checkpoint of another model, recipe, set of clips or settings; remove it to start anew"
            )
        return state

    def save(
        self, shortcut: torch.nn.Module, optimiser: torch.optim.Optimizer, step: int, position: tuple[int, ...],
        result: FitResult,
    ) -> None:  # fmt: skip
        state = {
            "digest": self.digest, "shortcut": shortcut.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
            "position": list(position), "loss": result.loss, "explained": result.explained, "frames": result.frames,
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        torch.save(state, part)
        os.replace(part, self.path)
