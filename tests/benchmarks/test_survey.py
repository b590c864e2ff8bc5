"""The survey's efficiency table on small callables whose costs are known, and on the demo model."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.survey import (
    Candidate,
    Efficiency,
    Sample,
    efficient_error_rate,
    mean_iou,
    measure,
    prompt_of,
    survey,
    video_segmenter,
)
from surgery import DatasetError
from surgery.demo import load, make_clip
from surgery.evaluation import region_j
from surgery.video import BoxPrompt, PointPrompt


def sample(height: int = 40, width: int = 50) -> Sample:
    mask = np.zeros((height, width), bool)
    mask[10:21, 20:35] = True
    image = np.full((height, width, 3), 30, np.uint8)
    image[mask] = 200
    return Sample(image, mask)


class Bright(nn.Module):
    """Segments what is bright; costs one matrix product of [n, n] by [n, n] and keeps `held` floats."""

    def __init__(self, n: int = 64, held: int = 1000, seconds: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(held))
        self.n, self.seconds = n, seconds

    def forward(self, image: np.ndarray, prompt: PointPrompt | BoxPrompt) -> np.ndarray:
        time.sleep(self.seconds)
        with torch.no_grad():
            square = torch.zeros(self.n, self.n)
            square @ square
        return image[..., 0] > 100


def test_costs_of_a_known_callable() -> None:
    module = Bright(n=64, held=1000, seconds=0.02)
    cost = measure(Candidate(module, module), sample(), repeats=3)
    assert cost.parameters == 1000
    assert cost.gflop == pytest.approx(2 * 64**3 / 1e9)
    assert cost.gmac == pytest.approx(64**3 / 1e9)
    # Parameters, factor and product; unaligned storage has a few bytes before its values.
    assert cost.memory_mb * 2**20 == pytest.approx(4 * 1000 + 2 * 4 * 64 * 64, abs=64)
    assert 20 <= cost.latency_ms < 200
    assert cost.throughput == pytest.approx(1000 / cost.latency_ms)
    assert measure(Candidate(module), sample(), repeats=1).parameters is None


def test_peak_memory_is_what_lives_at_once() -> None:
    def segment(image: np.ndarray, prompt: PointPrompt | BoxPrompt) -> np.ndarray:
        value = torch.zeros(10_000)
        for _ in range(5):
            value = value + 1  # two of them live at a time
        view = value.view(100, 100)
        view += 1
        return image[..., 0] > 100

    assert measure(Candidate(segment), sample(), repeats=1).memory_mb * 2**20 == 2 * 4 * 10_000


def test_efficient_error_rate_by_hand() -> None:
    reference = Efficiency(600, 100.0, 50.0, 200.0, 40.0, 25.0)
    ours = Efficiency(300, 50.0, 25.0, 20.0, 10.0, 100.0)
    assert efficient_error_rate(ours, reference) == pytest.approx((0.5 + 0.5 + 0.1 + 0.25) / 4)
    assert efficient_error_rate(reference, reference) == 1.0
    assert efficient_error_rate(Efficiency(None, 1, 1, 1, 1, 1), reference) is None
    with pytest.raises(DatasetError, match="gflop 0"):
        efficient_error_rate(ours, Efficiency(1, 0.0, 0.0, 1.0, 1.0, 1.0))


def test_prompts() -> None:
    mask = sample().mask
    center = prompt_of(mask, "center")
    assert isinstance(center, PointPrompt) and center.points == ((25.0, 15.0),)  # rows 10..20, columns 20..34
    box = prompt_of(mask, "box")
    assert isinstance(box, BoxPrompt) and (box.x0, box.y0, box.x1, box.y1) == (20, 10, 35, 21)
    generator = np.random.default_rng(1)
    found = {prompt_of(mask, "random", generator).points[0] for _ in range(400)}  # type: ignore[union-attr]
    assert len(found) > 80 and all(mask[int(y), int(x)] for x, y in found)
    assert prompt_of(mask, "random") == prompt_of(mask, "random")
    with pytest.raises(DatasetError, match="did you mean 'center'"):
        prompt_of(mask, "centre")
    with pytest.raises(DatasetError, match="empty mask"):
        prompt_of(np.zeros((3, 3), bool), "box")


def test_mean_iou_and_what_the_model_returns() -> None:
    one = sample()
    assert mean_iou(lambda image, prompt: image[..., 0] > 100, [one], "box") == 1.0

    def half(image: np.ndarray, prompt: PointPrompt | BoxPrompt) -> np.ndarray:
        guess = np.zeros(image.shape[:2], bool)
        guess[10:21, 20:25] = True
        return guess

    assert mean_iou(half, [one, one], "center") == pytest.approx(1 / 3)
    with pytest.raises(DatasetError, match=r"float64 of shape \(40, 50\)"):
        mean_iou(lambda image, prompt: np.zeros((40, 50)), [one], "box")


def test_the_table() -> None:
    small, large = Bright(n=32, held=100), Bright(n=64, held=400)
    table = survey({"large": Candidate(large, large), "small": Candidate(small, small)}, [sample()], "large", repeats=1)
    rows = {row.name: row for row in table.rows}
    assert rows["large"].eer == 1.0 and rows["small"].eer is not None
    cost = rows["small"].efficiency
    assert (cost.parameters, cost.gflop) == (100, pytest.approx(2 * 32**3 / 1e9))
    data = json.loads(json.dumps(table.as_dict()))
    assert (data["kind"], data["reference"], len(data["rows"])) == ("survey", "large", 2)
    lines = table.markdown().splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    with pytest.raises(DatasetError, match="did you mean 'large'"):
        survey({"large": Candidate(large)}, [sample()], "larg")
    with pytest.raises(DatasetError, match="no sample"):
        survey({"large": Candidate(large)}, [], "large")
    with pytest.raises(DatasetError, match="not empty"):
        Sample(sample().image, np.zeros((40, 50), bool))


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_the_demo_model(host: str) -> None:
    clip = make_clip(11, frames=1)
    samples = [Sample(clip.frames[0], clip.labels[0] == label) for label in range(1, clip.visible.shape[1] + 1)]
    model = load(host=host)  # type: ignore[arg-type]
    table = survey({"demo": Candidate(video_segmenter(model), model)}, samples, "demo", repeats=1)
    row = table.rows[0]
    assert row.efficiency.parameters == sum(p.numel() for p in model.parameters())
    assert row.efficiency.gflop > 1 and row.efficiency.memory_mb > 4 * 4.4
    assert row.miou["box"] > 0.6
    guess = video_segmenter(model)(samples[0].image, prompt_of(samples[0].mask, "box"))
    assert region_j(guess, samples[0].mask) > 0.5
