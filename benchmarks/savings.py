"""What exact savings are worth at 1024 px on one thread, and what was left: `python -m benchmarks.savings`.

Processor time, not wall time, so that others on the machine disturb less; the two ways alternate, and medians of pairs
are given. Random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery import Recipe, sparsify
from surgery.bench.flops import _full_bank_plan
from surgery.bench.machine import machine
from surgery.engine import require_view
from surgery.graft import graft, ungraft
from surgery.hosts import view_of
from surgery.hosts.transformers.encoder import TransformersEncoderAttention
from surgery.loading import load_model
from surgery.operations import SparseMemoryRetrieval
from surgery.recipe import Metadata
from surgery.retrieval.attention import Projections, pruned_attention, rotate, rotated_query, split_heads
from surgery.retrieval.bank import KeyPlan

CPU = torch.device("cpu")
TOKENS, FRAMES, POINTERS, WIDTH = 4096, 7, 64, 256


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS), help="others stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "savings-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "kind": "savings",
        "schema": 1,
        "command": "python -m benchmarks.savings",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(CPU),
        "unit": "milliseconds of processor time, one thread, fp32, 1024 px, random weights",
    }
    if options.out.exists():
        document = {**json.loads(options.out.read_text()), **document}
    with torch.inference_mode():
        for name in options.parts:
            document[name] = {"pairs": options.pairs, **PARTS[name](options.pairs)}
            options.out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps({name: document[name]}), flush=True)


def base_plus() -> Any:
    """SAM 2.1 base-plus in transformers, random weights."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    widths = [112, 224, 448, 896]
    trunk = Sam2HieraDetConfig(
        hidden_size=112, num_attention_heads=2, blocks_per_stage=[2, 3, 16, 3], embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[2, 4, 8, 16], window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[12, 16, 20], window_positional_embedding_background_size=[14, 14],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=widths[::-1])
    return Sam2VideoModel(Sam2VideoConfig(vision_config=vision)).eval()


def spent(call: Callable[[], Any]) -> float:
    """Milliseconds of processor time."""
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def compared(before: Callable[[], Any], after: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Medians of both, and of the share saved in each pair; one pair is not counted."""
    times = [(spent(before), spent(after)) for _ in range(pairs + 1)][1:]
    return {
        "before": round(statistics.median(one for one, _ in times), 2),
        "after": round(statistics.median(other for _, other in times), 2),
        "saved": round(statistics.median(1 - other / one for one, other in times), 4),
    }


def median(call: Callable[[], Any], times: int) -> float:
    """Median milliseconds; the first call is not counted."""
    return round(statistics.median([spent(call) for _ in range(times + 1)][1:]), 3)


def bank(frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Current features [T, 1, C] and memory [M, 1, 64]."""
    return torch.randn(TOKENS, 1, WIDTH), torch.randn(frames * TOKENS + POINTERS, 1, 64)


def object_work(pairs: int) -> dict[str, Any]:
    """What the host does for every object although the frame or the model alone decides it, beside all it does."""
    model: Any = sparsify(load_model("random:tiny", "sam2", "cpu"), "balanced")
    twin = base_plus()
    view = require_view(model)
    current, memory = bank()
    first = model.memory_attention.layers[0]
    tokens = torch.randn(1, TOKENS, WIDTH)
    feature, code = torch.randn(1, WIDTH, 64, 64), torch.randn(1, WIDTH, 64, 64)
    mask = torch.randn(1, 1, 1024, 1024)
    fine = [torch.randn(1, 32, 256, 256), torch.randn(1, 64, 128, 128)]

    def pruned() -> None:
        view.binding.plan = bank_plan(Recipe.load("balanced").find(SparseMemoryRetrieval))
        try:
            view.run_memory_attention(current, memory, POINTERS)
        finally:
            view.binding.plan = None

    def decode() -> None:
        sparse, dense = model.sam_prompt_encoder(
            points=(torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)), boxes=None, masks=None
        )
        model.sam_mask_decoder(
            image_embeddings=feature, image_pe=code, sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
            multimask_output=True, repeat_image=False, high_res_features=fine,
        )  # fmt: skip

    whole = {
        "memory attention, all keys": median(lambda: view.run_memory_attention(current, memory, POINTERS), pairs),
        "memory attention, keys as balanced": median(pruned, pairs),
        "mask decoder": median(decode, pairs),
        "memory encoder": median(lambda: model.memory_encoder(feature, mask), pairs),
    }
    few = 5 * pairs
    shared = {
        "first self-attention (taken)": median(lambda: first.self_attn(tokens, tokens, tokens), pairs),
        "norm before it": median(lambda: first.norm1(tokens), few),
        "projection of the features in the memory encoder": median(
            lambda: model.memory_encoder.pix_feat_proj(feature), few
        ),
        "position code of the decoder": median(model.sam_prompt_encoder.get_dense_pe, few),
        "rotary tables (transformers)": median(
            lambda: twin.memory_attention.rotary_emb(tokens, twin.memory_attention.position_ids), few
        ),
        "key plan": median(lambda: bank_plan(Recipe.load("balanced").find(SparseMemoryRetrieval)), few),
    }
    total = sum(whole.values()) - whole["memory attention, all keys"]
    return {
        "per_object": whole,
        "decided_by_the_frame": {name: {"ms": ms, "of_object": round(ms / total, 4)} for name, ms in shared.items()},
        "of_object": "share of pruned memory attention, mask decoder and memory encoder together",
    }


def bank_plan(settings: SparseMemoryRetrieval | None) -> KeyPlan:
    """The plan of a late frame with a full bank."""
    assert settings is not None
    plan = _full_bank_plan(
        settings, layers=4, frames=FRAMES, tokens=TOKENS, pointers=POINTERS, conditioning=1, device=CPU
    )
    assert plan is not None
    return plan


def memory_rows(pairs: int) -> dict[str, Any]:
    """Keys and values of unchanged memory rows, projected and rotated once instead of on every frame."""
    found = {}
    for name, settings in {
        "balanced": Recipe.load("balanced").find(SparseMemoryRetrieval),
        "published": SparseMemoryRetrieval(),
    }.items():
        assert settings is not None
        model: Any = sparsify(
            load_model("random:tiny", "sam2", "cpu"),
            Recipe(metadata=Metadata(name=name, description=name), operations=(settings,)),
        )
        found[name] = _rows(model, bank_plan(settings), pairs)
    return found


def _rows(model: Any, plan: KeyPlan, pairs: int) -> dict[str, Any]:
    view = require_view(model)
    attention = model.memory_attention.layers[0].cross_attn_image
    parts = Projections(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, 1)
    cos, sin = attention.freqs_cis.real, attention.freqs_cis.imag
    current, memory = bank()
    keys, values = memory[:, 0] + 0.1, memory[:, 0]
    query = rotated_query(current[:, 0], parts, cos, sin)
    index, places = plan.index[0], plan.rows[0]
    assert index is not None and places is not None
    fixed = int((index[: places.shape[0]] < TOKENS).sum())
    older = int((index[: places.shape[0]] < (FRAMES - 1) * TOKENS).sum())
    bias = None if plan.bias is None else plan.bias[0]
    if bias is not None:
        bias = bias[None, None, None].expand(1, 1, TOKENS, -1)

    def values_of(start: int, end: int) -> Tensor:
        return split_heads(parts.value(values.index_select(0, index[start:end])), 1)

    def keys_of(start: int, end: int) -> Tensor:
        taken = index[start:end]
        key = split_heads(parts.key(keys.index_select(0, taken)), 1)
        placed = min(end, places.shape[0]) - start
        turned = rotate(
            key[:, :placed], *(table.index_select(0, places[start : start + placed]) for table in (cos, sin))
        )
        return torch.cat([turned, key[:, placed:]], 1)

    end = index.shape[0]
    kept_keys, kept_values = keys_of(0, fixed), values_of(0, older)

    def cached() -> Tensor:
        key = torch.cat([kept_keys, keys_of(fixed, end)], 1)
        value = torch.cat([kept_values, values_of(older, end)], 1)
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias)[0]
        return parts.output(mixed.transpose(0, 1).flatten(-2))

    def recomputed() -> Tensor:
        return pruned_attention(query, keys, values, plan, 0, parts, cos, sin)

    def whole() -> None:
        view.binding.plan = plan
        try:
            view.run_memory_attention(current, memory, POINTERS)
        finally:
            view.binding.plan = None

    difference = float((cached() - recomputed()).abs().max())
    assert difference <= 1e-5, difference
    layer, attended = compared(recomputed, cached, 10 * pairs), median(whole, pairs)
    projecting = median(lambda: (keys_of(0, fixed), values_of(0, older)), 10 * pairs)
    flops = 2 * 64 * WIDTH * (2 * fixed + (older - fixed)) * 4 / 1e9
    return {
        "rows": {"conditioning": fixed, "older": older - fixed, "read": index.shape[0]},
        "memory_attention_ms": attended,
        "projection_ms": round(4 * projecting, 2),
        "one_layer": layer,
        "saved_of_memory_attention": round(4 * layer["saved"] * layer["before"] / attended, 4),
        "gflop_saved": round(flops, 3),
        "mb_per_object": round(4 * WIDTH * 4 * (2 * fixed + older - fixed) / 2**20, 1),
        "largest_difference": difference,
    }


def dead_product(pairs: int) -> dict[str, Any]:
    """The image encoder of transformers' base-plus with and without the product it never reads."""
    view = view_of(base_plus())
    pixels = torch.randn(1, 3, 1024, 1024)
    encoder = view.image_encoder()
    attentions = [module for module, mixin in view.wasteful() if mixin is TransformersEncoderAttention]
    outputs: list[Tensor] = []

    def run() -> None:
        outputs.append(encoder(pixels).fpn_hidden_states[-1])

    def lean() -> None:
        for module in attentions:
            graft(module, TransformersEncoderAttention, view.binding)
        try:
            run()
        finally:
            for module in attentions:
                ungraft(module)

    found = compared(run, lean, pairs)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:]), "not bit-equal"
    return found


PARTS = {part.__name__: part for part in (object_work, memory_rows, dead_product)}

if __name__ == "__main__":
    main()
