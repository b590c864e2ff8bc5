"""Share of the stock encoder's time and FLOPs in the blocks that routing can skip.

python benchmarks/encoder_share.py --size base-plus --out benchmarks/results/encoder-share-base-plus-cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch

import surgery
from surgery.api import require_view
from surgery.bench.flops import encoder_gflop
from surgery.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base-plus")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    model = surgery.sparsify(load_model(f"random:{options.size}", device="cpu"), "published-large")
    view = require_view(model)
    span = view.span_info
    assert span is not None
    total_gflop, least_gflop = encoder_gflop(view), encoder_gflop(view, [0])
    surgery.desparsify(model)
    started = [0.0]
    spent: list[float] = []
    blocks = view.blocks()
    blocks[span.entry].register_forward_pre_hook(lambda *_: started.__setitem__(0, time.perf_counter()))
    blocks[span.exit - 1].register_forward_hook(lambda *_: spent.append(time.perf_counter() - started[0]))
    side, whole = view.image_size(), []
    with torch.inference_mode():
        for _ in range(options.runs + 1):
            begin = time.perf_counter()
            model.image_encoder(torch.randn(1, 3, side, side))
            whole.append(time.perf_counter() - begin)
    shares = [part / total for part, total in zip(spent[1:], whole[1:], strict=True)]
    result = {
        "what": "stock sam2 encoder, fp32, CPU: blocks that routing can skip",
        "command": " ".join(["python", *sys.argv]),
        "model": f"sam2.1 {options.size}, random weights",
        "blocks": [span.entry, span.exit - 1],
        "time_share": statistics.median(shares),
        "time_shares": [round(share, 4) for share in shares],
        "encoder_ms": round(1000 * statistics.median(whole[1:]), 1),
        "flop_share_with_one_window_kept": 1 - least_gflop / total_gflop,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
