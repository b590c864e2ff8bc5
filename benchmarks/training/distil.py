"""Train the encoder of the SAM 3 miniature: `python -m benchmarks.training.distil --out runs/sam3`.

It learns the feature maps that the SAM 2 miniature's encoder gives the tracker, on frames of both synthetic worlds,
without labels. `--masks STEPS` trains all of it on masks afterwards, as `benchmarks.training.train` does.

Writes to the output folder: `last.pt` (to resume from), `weights.safetensors` (averaged, fp16) and `log.jsonl`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sam3_miniature import SIZE
from benchmarks.training import learner, vit
from benchmarks.training.feed import Batch, Feed, FeedPlan
from surgery.demo.model import load

LOG_EVERY = 10
DISTIL = FeedPlan(12, 2, SIZE.side, source_frames=8, pool=60, fresh_per_step=1, practice=0, new_world=0.65)
MASKS = FeedPlan(4, 4, SIZE.side, source_frames=12, pool=40, fresh_per_step=1, new_world=0.5)


class Distiller:
    """One run: the student, its average, the teacher, the optimiser and their files."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        torch.manual_seed(given.seed)
        self.model = vit.tracker(given.seed).train()
        self.teacher = load("sam2")
        learner.set_image_size(self.teacher, SIZE.side)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.encoder = [each for each in self.model.image_encoder.parameters() if each.requires_grad]
        rest = [
            each for name, each in self.model.named_parameters() if each.requires_grad and "image_encoder" not in name
        ]
        self.optimiser = torch.optim.AdamW(
            [{"params": self.encoder}, {"params": rest}], lr=given.rate, betas=(0.9, 0.98), weight_decay=0.02
        )
        self.step, self.seconds, self.feed = 0, 0.0, Feed(given.seed, DISTIL)
        self.spread: list[torch.Tensor] = []
        given.out.mkdir(parents=True, exist_ok=True)
        if (given.out / "last.pt").is_file():
            self._restore()

    def run(self) -> None:
        """Train to the last step, or to `--stop-after`."""
        total = self.given.steps + self.given.masks
        last = min(total, self.given.stop_after or total)
        while self.step < last:
            began = time.perf_counter()
            row = self._distil() if self.step < self.given.steps else self._track()
            self.step += 1
            self._follow()
            self.seconds += time.perf_counter() - began
            if self.step % LOG_EVERY == 0:
                self._log({"step": self.step, **row, "seconds": self.seconds})
            if self.step % 50 == 0 or self.step in (last, self.given.steps):
                self._save()

    def _distil(self) -> dict[str, float]:
        images = self.feed.batch(self.step).images.flatten(0, 1)
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                wanted = [each.float() for each in learner.encode(self.teacher, images)]
            if not self.spread:
                self.spread = [each.std((0, 2, 3), keepdim=True) for each in wanted]
        found = self._encode(images)
        parts = [
            (((mine - theirs) / spread) ** 2).mean()
            for mine, theirs, spread in zip(found, wanted, self.spread, strict=True)
        ]
        loss = torch.stack(parts).sum()
        done = self.step / self.given.steps
        norm = self._move(loss, self.given.rate * min(1.0, (self.step + 1) / 60) * _cosine(done), 0.0)
        names = ("fine", "middle", "coarse")
        return {name: float(part.detach()) for name, part in zip(names, parts, strict=True)} | {"norm": norm}

    def _track(self) -> dict[str, float]:
        if self.feed.plan != MASKS:
            self.feed = Feed(self.given.seed, MASKS)
        batch: Batch = self.feed.batch(self.step)
        generator = torch.Generator().manual_seed(self.given.seed * 1_000_003 + self.step)
        done = (self.step - self.given.steps) / self.given.masks
        parts = learner.roll(
            self.model, batch, 0.15, learner.Weights(), generator, lambda _, images: self._encode(images)
        )
        rate = self.given.masks_rate * min(1.0, 20 * done + 0.05) * _cosine(done)
        norm = self._move(parts["loss"], rate, rate / 2)
        return {name: float(value.detach()) for name, value in parts.items()} | {"norm": norm}

    def _encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [each.float() for each in vit.encode(self.model, images)]

    def _move(self, loss: torch.Tensor, encoder: float, rest: float) -> float:
        """One step of the optimiser, by the rates of the encoder and of the rest; 0 leaves it as it is."""
        for group, rate in zip(self.optimiser.param_groups, (encoder, rest), strict=True):
            group["lr"] = rate
        loss.backward()
        if not rest:
            for each in self.optimiser.param_groups[1]["params"]:
                each.grad = None
        norm = torch.nn.utils.clip_grad_norm_(
            [each for group in self.optimiser.param_groups for each in group["params"]], 1.0
        )
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(0.99, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _save(self) -> None:
        from safetensors.torch import save_file

        out = self.given.out
        state = {
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds, "spread": self.spread,
            "random": torch.get_rng_state(),
        }  # fmt: skip
        torch.save(state, out / "last.pt.part")
        os.replace(out / "last.pt.part", out / "last.pt")
        weights = {name: value.half().contiguous() for name, value in vit.neutral(self.average.state_dict()).items()}
        save_file(weights, out / "weights.safetensors.part")
        os.replace(out / "weights.safetensors.part", out / "weights.safetensors")

    def _restore(self) -> None:
        state = torch.load(self.given.out / "last.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.spread = state["step"], state["seconds"], state["spread"]
        torch.set_rng_state(state["random"])
        log = self.given.out / "log.jsonl"
        kept = [row for row in log.read_text(encoding="utf-8").splitlines() if json.loads(row)["step"] <= self.step]
        log.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    def _log(self, row: dict[str, float]) -> None:
        with open(self.given.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({key: round(value, 5) for key, value in row.items()}) + "\n")


def _cosine(done: float) -> float:
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser: Any = argparse.ArgumentParser(
        prog="python -m benchmarks.training.distil", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder; a run that is in it goes on")
    parser.add_argument("--steps", type=int, default=1500, help="of 24 frames, without labels")
    parser.add_argument("--masks", type=int, default=0, help="steps on masks after them")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--masks-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="stop at this step, leaving the schedule as it is")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Distiller(parse()).run()
