"""The efficiency table of "On Efficient Variants of Segment Anything Model: A Survey" (Sun et al., arXiv 2410.04960).

Parameters, operations, memory, latency and throughput of any SAM-like model, the efficient error rate against a
reference model (SAM-H in the survey), and mIoU under centre-point, random-point and box prompts.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from surgery.errors import DatasetError, nearest
from surgery.evaluation.metrics import region_j
from surgery.video import BoxPrompt, PointPrompt, deepest_pixel
from surgery.video.masks import Mask

Image = npt.NDArray[np.uint8]
Prompt = PointPrompt | BoxPrompt
Segment = Callable[[Image, Prompt], Mask]
PROMPTS = ("center", "random", "box")
_COSTS = ("gflop", "gmac", "memory_mb", "latency_ms", "throughput")
EER_METRICS = ("parameters", "gflop", "memory_mb", "latency_ms")


@dataclass(frozen=True)
class Sample:
    """One object of one image. image: RGB uint8 [H, W, 3]. mask: bool [H, W], not empty."""

    image: Image
    mask: Mask

    def __post_init__(self) -> None:
        if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.bool_ or not self.mask.any():
            raise DatasetError(
                f"a sample with an image of shape {self.image.shape} and a mask of {self.mask.dtype} {self.mask.shape} "
                f"with {int(np.count_nonzero(self.mask))} pixels, expected a bool mask of the image's size, not empty"
            )


@dataclass(frozen=True)
class Candidate:
    """A model under test. segment: (image, prompt) -> bool [H, W]. module: whose parameters count, or None."""

    segment: Segment
    module: nn.Module | None = None


@dataclass(frozen=True)
class Efficiency:
    """What one image with one prompt costs, at batch 1.

    parameters: count, None without a module. gflop: multiply-add = 2, matrix products and convolutions only. gmac:
    half of it. memory_mb: peak bytes of tensors and parameters / 2**20; on CUDA the allocator's peak. latency_ms:
    median.
    throughput: images per second, 1000 / latency.
    """

    parameters: int | None
    gflop: float
    gmac: float
    memory_mb: float
    latency_ms: float
    throughput: float


@dataclass(frozen=True)
class SurveyRow:
    """One line of the table. miou: mean IoU by prompt kind, in 0..1. eer: None for want of a metric."""

    name: str
    efficiency: Efficiency
    miou: dict[str, float]
    eer: float | None


@dataclass(frozen=True)
class SurveyTable:
    """All lines, and which one the efficient error rate is relative to."""

    rows: list[SurveyRow]
    reference: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data: `kind` "survey", `schema` 1, `reference`, `eer_metrics`, `rows`."""
        return {
            "kind": "survey",
            "schema": 1,
            "reference": self.reference,
            "eer_metrics": list(EER_METRICS),
            "rows": [asdict(row) for row in self.rows],
        }

    def markdown(self) -> str:
        """The table as Markdown; mIoU and EER in percent, as the survey prints them."""
        lines = [
            "| model | parameters | GFLOP | GMAC | MB | ms | images/s | EER % | mIoU center | mIoU random | mIoU box |",
            "|" + "---|" * 11,
        ]
        for row in self.rows:
            cost = row.efficiency
            cells = [
                row.name,
                "-" if cost.parameters is None else f"{cost.parameters:,}",
                *(
                    f"{value:.2f}"
                    for value in (cost.gflop, cost.gmac, cost.memory_mb, cost.latency_ms, cost.throughput)
                ),
                "-" if row.eer is None else f"{100 * row.eer:.1f}",
                *(f"{100 * row.miou[kind]:.1f}" for kind in PROMPTS),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def survey(
    candidates: Mapping[str, Candidate], samples: Sequence[Sample], reference: str, *, seed: int = 0, repeats: int = 5
) -> SurveyTable:
    """Measure every candidate on the same samples and prompts.

    Args:
        candidates: models by name. samples: at least one. reference: name of the model that the efficient error rate
            is relative to. seed: of the random points. repeats: timed calls, after one untimed.

    Raises:
        DatasetError: no sample, an unknown reference, or a mask of another size or type than the image asks for.
    """
    if not samples:
        raise DatasetError("no sample, expected at least one image with a mask")
    if reference not in candidates:
        raise DatasetError(
            f"reference {reference!r}{nearest(reference, candidates)}; candidates: {', '.join(candidates) or 'none'}"
        )
    costs = {name: measure(one, samples[0], repeats) for name, one in candidates.items()}
    rows = [
        SurveyRow(
            name,
            costs[name],
            {kind: mean_iou(one.segment, samples, kind, seed) for kind in PROMPTS},
            efficient_error_rate(costs[name], costs[reference]),
        )
        for name, one in candidates.items()
    ]
    return SurveyTable(rows, reference)


def efficient_error_rate(ours: Efficiency, reference: Efficiency) -> float | None:
    """Mean over `EER_METRICS` of ours / reference: 1 for the reference itself, lower is better.

    Papa et al. (arXiv 2309.02031), which the survey takes it from. Throughput is left out: it is the inverse of the
    latency. None when a metric is not known for both.

    Raises:
        DatasetError: the reference has 0 in a metric, so there is no ratio.
    """
    ratios = []
    for name in EER_METRICS:
        mine, theirs = getattr(ours, name), getattr(reference, name)
        if mine is None or theirs is None:
            return None
        if not theirs:
            raise DatasetError(f"the reference has {name} 0, expected more: no ratio to it exists")
        ratios.append(mine / theirs)
    return statistics.fmean(ratios)


def measure(candidate: Candidate, sample: Sample, repeats: int = 5) -> Efficiency:
    """The cost of one image with a centre-point prompt; counting and timing are separate calls."""
    prompt = prompt_of(sample.mask, "center")
    device = next((p.device for p in candidate.module.parameters()), None) if candidate.module is not None else None
    device = device or torch.device("cpu")

    def call() -> None:
        candidate.segment(sample.image, prompt)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    counter = FlopCounterMode(display=False)
    # The fused attention kernels of some devices are unknown to the counter.
    with counter, sdpa_kernel(SDPBackend.MATH):
        call()
    memory = _peak_bytes(call, candidate.module, device)
    times = []
    for _ in range(max(1, repeats)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    gflop = counter.get_total_flops() / 1e9
    parameters = sum(p.numel() for p in candidate.module.parameters()) if candidate.module is not None else None
    return Efficiency(parameters, gflop, gflop / 2, memory / 2**20, 1000 * seconds, 1 / seconds)


def mean_iou(segment: Segment, samples: Sequence[Sample], kind: str, seed: int = 0) -> float:
    """Mean IoU over samples under prompts of one kind, in 0..1.

    Raises:
        DatasetError: an unknown kind, or a result that is not bool [H, W].
    """
    generator = np.random.default_rng(seed)
    values = []
    for sample in samples:
        guess = np.asarray(segment(sample.image, prompt_of(sample.mask, kind, generator)))
        if guess.shape != sample.mask.shape or guess.dtype != np.bool_:
            raise DatasetError(
                f"the model returned {guess.dtype} of shape {guess.shape}, expected a bool mask of {sample.mask.shape}"
            )
        values.append(region_j(guess, sample.mask))
    return statistics.fmean(values)


def prompt_of(mask: Mask, kind: str, generator: np.random.Generator | None = None) -> Prompt:
    """A prompt made from an object's mask.

    Args:
        mask: bool [H, W], not empty.
        kind: "center", the pixel farthest from the background in city-block steps (the first in reading order of
            equals; Kirillov et al. 2023, section 7.1, take the distance transform's maximum); "random", any pixel of
            the object with equal chance; "box", the tight box.
        generator: for "random"; default seed 0.

    Raises:
        DatasetError: an unknown kind or an empty mask.
    """
    if kind not in PROMPTS:
        raise DatasetError(f"prompt {kind!r}{nearest(kind, PROMPTS)}; known: {', '.join(PROMPTS)}")
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise DatasetError("an empty mask makes no prompt, expected at least one pixel")
    if kind == "box":
        return BoxPrompt(float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    if kind == "random":
        number = int((generator or np.random.default_rng(0)).integers(len(rows)))
        return PointPrompt(((float(columns[number]), float(rows[number])),), (1,))
    row, column = deepest_pixel(mask)
    return PointPrompt(((float(column), float(row)),), (1,))


def video_segmenter(model: Any) -> Segment:
    """A SAM 2 video model of either host as an image model: every image is a video of one frame."""
    from surgery.tracking import track
    from surgery.video import open_video

    def segment(image: Image, prompt: Prompt) -> Mask:
        with torch.no_grad(), contextlib.closing(track(model, open_video(image[None]), [prompt])) as frames:  # type: ignore[type-var]
            return next(frames).logits[prompt.obj_id] > 0

    return segment


def _peak_bytes(call: Callable[[], None], module: nn.Module | None, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device))
    held = list(_tensors_of(module)) if module is not None else []
    tracker = _LiveTensors(held)
    with tracker:
        call()
    return tracker.peak


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live; `held` count from the start."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size
