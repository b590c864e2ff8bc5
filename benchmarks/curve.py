"""Quality against speed on the demo model, and what each operation beyond the published method costs and saves.

    python -m benchmarks.curve --clips 16            # quality-speed.json and benchmarks/images/quality-speed.svg
    python -m benchmarks.curve --beyond --clips 20   # beyond-demo.json

Quality: J&F against ground truth on held-out synthetic clips, prompted by masks. Speed: the operations that SAM 2.1
base+ at 1024 px would need per frame with the shares measured here (windows, keys, queries), one object and a full
memory bank; encoder and memory attention are counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import torch

import surgery.demo as demo
from benchmarks.parts import fitted, score, shortcut_of
from surgery import Recipe, __version__, sparsify
from surgery.core.cost import CostModel
from surgery.demo.clips import HELD_OUT, Difficulty, make_clip
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.loading import load_model
from surgery.operations import SparseWindowRouting

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {
    f"published, mass {mass:g}, keys {keep:.0%}": (
        "published-large", [f"routing.object.saliency_mass={mass}", f"retrieval.keep={keep}"],
    )
    for mass, keep in ((0.9, 0.2), (0.7, 0.05), (0.5, 0.02))
}  # fmt: skip
OURS = {
    f"ours, {budget:.0%} of the tiles": ("turbo", [f"routing.budget={budget}", f"routing.stages.early={early}", *more])
    for budget, early, more in (
        (0.1875, 0.4, ()), (0.25, 0.45, ()), (0.3125, 0.5, ("queries.budget=0.4",)),
        (0.5, 0.7, ("queries.budget=0.6", "retrieval.keep=0.2")),
    )
}  # fmt: skip
NONE = {
    "routing.stages.span": "stage3", "routing.stages.early": 0.0, "routing.stages.stage4": "dense",
    "routing.object.motion": 0.0, "queries.budget": 1.0, "retrieval.keep": 1.0, "retrieval.keep_conditioning": 1.0,
}  # fmt: skip
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("stage-3 routing, temporal shortcut", {}),
    ("(a) tiles from the first block", {"routing.stages.span": "tiles"}),
    ("extra early pieces where objects are", {"routing.stages.early": 0.45}),
    ("(d) object-motion margin", {"routing.object.motion": 1.0}),
    ("(f) stage 4 routed", {"routing.stages.stage4": "routed"}),
    ("older memory pruned to a tenth", {"retrieval.keep": 0.1}),
    ("(c) conditioning frame pruned to two fifths", {"retrieval.keep_conditioning": 0.4}),
    ("(b) query routing, three tenths", {"queries": True, "queries.budget": 0.3}),
]


def overrides(values: dict[str, Any]) -> list[str]:
    """As `Recipe.with_overrides` takes them."""
    return [f"{key}={value}" for key, value in values.items()]


def beyond() -> dict[str, Recipe]:
    """Rows that add one operation after another to stage-3 routing; the last is `turbo`."""
    turbo = Recipe.load("turbo").model_copy(update={"calibration": None})
    values: dict[str, Any] = dict(NONE)
    rows = {}
    for name, more in STEPS:
        queries = bool(more.get("queries"))
        values |= {key: value for key, value in more.items() if key != "queries"}
        changed = turbo.with_overrides(overrides(values))
        kept = tuple(each for each in changed.operations if queries or each.type != "sparse_query_routing")
        rows[name] = changed.model_copy(update={"operations": kept, "calibration": None})
    return rows


class Weights:
    """Fitted on the eight clips of the shipped adapters: once for the published shortcut, once for ours.

    large: the model whose operations are counted.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.large = load_model("random:base-plus", device="cpu", weights=False)
        self._held: dict[str, dict[str, torch.Tensor]] = {}

    def give(self, model: Any, recipe: Recipe) -> None:
        """Give a model under surgery the weights that its recipe needs."""
        routing = recipe.find(SparseWindowRouting)
        assert routing is not None
        name = "turbo" if routing.skipped.temporal else "published-large"
        if name not in self._held:
            twin = sparsify(copy.deepcopy(self._model), name)
            self._held[name] = fitted(twin)
        shortcut = shortcut_of(model)
        shortcut.load_state_dict({key: self._held[name][key] for key in shortcut.state_dict()})


def row(
    name: str, model: Any, recipe: Recipe, clips: list[Any], dense: list[float], weights: Weights
) -> dict[str, Any]:
    """Track the clips under `recipe`."""
    sparse = sparsify(copy.deepcopy(model), recipe)
    weights.give(sparse, recipe)
    total, per_clip, queries = score(sparse, clips)
    drops = [before - after for before, after in zip(dense, per_clip, strict=True)]
    windows, keys = statistics.fmean(total.windows), statistics.fmean(total.keys)
    costs = CostModel(require_surgery(sparsify(weights.large, recipe)))
    share = sum(costs.shares({"windows": windows, "keys": keys, "queries": queries}).values())
    return {
        "name": name, "drop": statistics.fmean(drops), "interval": list(mean_interval(drops) or ()),
        "worst_clip": max(drops),
        "j_and_f": total.j_and_f(), "windows": windows, "keys": keys, "queries": queries, "speed": 1 / share,
        "recipe": recipe.to_dict(),
    }  # fmt: skip


def main() -> None:
    """Run, and write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out clip")
    parser.add_argument("--difficulties", default=",".join(get_args(Difficulty)))
    parser.add_argument("--beyond", action="store_true", help="the operations one after another, medium difficulty")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=ROOT / "benchmarks" / "images" / "quality-speed.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = (
        options.out or ROOT / "benchmarks" / "results" / f"{'beyond-demo' if options.beyond else 'quality-speed'}.json"
    )
    model = demo.load(host="sam2")
    weights = Weights(model)
    recipes = beyond() if options.beyond else {
        name: Recipe.load(recipe, more) for name, (recipe, more) in (PUBLISHED | OURS).items()
    }  # fmt: skip
    found: dict[str, Any] = {}
    levels: list[Difficulty] = ["medium"] if options.beyond else options.difficulties.split(",")
    for difficulty in levels:
        numbers = range(HELD_OUT + options.first, HELD_OUT + options.first + options.clips)
        clips = [make_clip(number, options.frames, difficulty=difficulty) for number in numbers]
        total, dense, _ = score(model, clips)
        found[difficulty] = {"dense": total.j_and_f(), "rows": []}
        for name, recipe in recipes.items():
            found[difficulty]["rows"].append(row(name, model, recipe, clips, dense, weights))
            print(
                difficulty,
                json.dumps({key: value for key, value in found[difficulty]["rows"][-1].items() if key != "recipe"}),
                flush=True,
            )
        document = {
            "command": f"python -m benchmarks.curve{' --beyond' if options.beyond else ''} --clips {options.clips} "
            f"--frames {options.frames}",
            "clips": options.clips, "frames": options.frames, "first": options.first, "difficulties": found,
            "versions": {"surgery": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if not options.beyond:
        draw(found, options.plot)


def draw(found: dict[str, Any], path: Path) -> None:
    """Drop in J&F over speed, one panel per difficulty."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.4), sharey=True, squeeze=False)
    for panel, (difficulty, each) in zip(panels[0], found.items(), strict=True):
        for start, label, marker in (("published", "published", "s"), ("ours", "ours", "o")):
            rows = sorted((row for row in each["rows"] if row["name"].startswith(start)), key=lambda row: row["speed"])
            low = [row["drop"] - row["interval"][0] for row in rows]
            high = [row["interval"][1] - row["drop"] for row in rows]
            panel.errorbar(
                [row["speed"] for row in rows], [row["drop"] for row in rows], yerr=[low, high], marker=marker,
                label=label, capsize=2, linewidth=1.2,
            )  # fmt: skip
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set_title(f"{difficulty} (dense J&F {each['dense']:.3f})", fontsize=10)
        panel.set_xlabel("fewer operations on base+ (times)")
    panels[0][0].set_ylabel("drop in J&F")
    panels[0][0].invert_yaxis()
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
