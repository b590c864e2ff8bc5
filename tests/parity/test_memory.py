"""Memory retrieval streams and prompt saliency against the published code, base+ width, memory modules only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery.core.evidence import prompt_saliency
from surgery.core.frame import FrameContext
from surgery.core.session import VideoState
from surgery.engine import require_surgery
from surgery.operations import SparseMemoryRetrieval
from surgery.operations.memory_retrieval.bank import ObjectMemory, plan_keys, remember
from surgery.recipe import Recipe
from tests.parity.fixtures import manifest, relative, seeded_input, stock_predictor, tensors

TOKENS, KEPT, MIDDLE = 4096, 204, 5
RETRIEVAL = SparseMemoryRetrieval()


@pytest.fixture(scope="module")
def predictor() -> Any:
    return stock_predictor("b+")


def tokens_of(feature_map: torch.Tensor) -> torch.Tensor:
    """[1, C, 64, 64] -> [4096, 1, C], as the host hands it to memory attention."""
    return feature_map.flatten(2).permute(2, 0, 1)


def run_stream(model: Any, name: str, stride: int, frames: int) -> None:
    expected, info = tensors(name), manifest(name)
    kinds = {"cur": ((1, 256, 64, 64), "smooth"), "mem": ((1, 64, 64, 64), "smooth"), "ptr": ((1, 256), "normal")}

    def read(key: str, frame: int) -> torch.Tensor:
        return seeded_input(f"{key}.{frame}", *kinds[key], info["digests"].get(f"{key}.{frame}"))

    current_position = tokens_of(model.image_encoder.neck.position_encoding(torch.zeros(1, 256, 64, 64)))
    memory_position = tokens_of(model.memory_encoder.position_encoding(torch.zeros(1, 64, 64, 64)))
    memories = {frame: tokens_of(read("mem", frame).bfloat16().float()) for frame in range(frames)}
    known, overlap = ObjectMemory(), []
    for frame in range(1, frames):
        near = (frame - 2) // stride * stride
        bank = [(0, 0)] + [
            (past, slot)
            for past, slot in [*((near - (5 - slot) * stride, slot) for slot in range(1, 6)), (frame - 1, 6)]
            if past >= 1
        ]
        pointer_frames = [0, *range(frame - 1, 0, -1)]
        pointers = torch.cat([read("ptr", past) for past in pointer_frames]).view(-1, 1, 64)
        distance = torch.tensor([frame - past for past in pointer_frames]) / (min(frames, 16) - 1)
        angle = distance[:, None] / (10000.0 ** (2 * (torch.arange(128) // 2) / 128))[None]
        pointer_position = model.obj_ptr_tpos_proj(torch.cat([angle.sin(), angle.cos()], -1))
        memory = torch.cat([memories[past] for past, _ in bank] + [pointers])
        position = torch.cat(
            [memory_position + model.maskmem_tpos_enc[6 - slot] for _, slot in bank]
            + [pointer_position.repeat_interleave(4, 0)[:, None]]
        )
        plan = plan_keys(
            [None if past == 0 else past for past, _ in bank], known, tokens=TOKENS, length=len(memory),
            pointers=len(pointers), layers=4, keep=0.05, query_stride=1, middle=MIDDLE, stride=stride,
            device=memory.device,
        )  # fmt: skip
        # A frame of no object: what is planned is read, and nothing else is planned.
        context = FrameContext(frame, VideoState(None), None, records={RETRIEVAL.type: plan})
        with require_surgery(model).within(context):
            output = model.memory_attention(
                curr=[tokens_of(read("cur", frame))], curr_pos=[current_position], memory=memory, memory_pos=position,
                num_obj_ptr_tokens=len(pointers),
            )  # fmt: skip
        rows = [
            len(memory) if plan is None or index is None else len(index)
            for index in (plan.index if plan else [None] * 4)
        ]
        assert rows == info["keys_per_frame"][str(frame)]["kept"], frame
        if plan is not None:
            remember(plan, known)
            for item in plan.measures:
                for layer, picked in enumerate(item.picked):
                    assert picked is not None
                    golden = set(expected[f"topk.{frame}.{layer}"].tolist())
                    overlap.append(len(golden & set(picked.tolist())) / KEPT)
        shown = output[:, 0].T.view(256, 64, 64)[:, ::8, ::8]
        assert relative(shown, expected[f"out.{frame}"]) < 1e-3, frame
    assert len(overlap) == 4 * sum(1 for key in expected if key.startswith("topk") and key.endswith(".0"))
    assert min(overlap) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride", "frames"), [("memory_retrieval", 1, 12), ("memory_retrieval_stride2", 2, 16)]
)
@torch.inference_mode()
def test_memory_stream(predictor: Any, name: str, stride: int, frames: int) -> None:
    recipe = Recipe(metadata={"name": "memory", "description": "Published."}, operations=[RETRIEVAL])
    surgery.sparsify(predictor, recipe)
    run_stream(predictor, name, stride, frames)


@pytest.mark.slow
@torch.inference_mode()
def test_prompt_saliency(predictor: Any) -> None:
    expected, info = tensors("prompt_saliency"), manifest("prompt_saliency")
    digests = info["digests"]
    feature = seeded_input("pix_feat", (1, 256, 64, 64), "smooth", digests["pix_feat"])
    fine = [
        seeded_input("high_res0", (1, 32, 256, 256), "smooth", digests["high_res0"]),
        seeded_input("high_res1", (1, 64, 128, 128), "smooth", digests["high_res1"]),
    ]
    decoder = predictor.sam_mask_decoder
    modules = [layer.cross_attn_token_to_image for layer in decoder.transformer.layers]
    modules.append(decoder.transformer.final_attn_token_to_image)
    read: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_module: Any, _args: Any, given: dict[str, torch.Tensor]) -> None:
        read.append((given["q"], given["k"]))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    bias = decoder.pred_obj_score_head.layers[-1].bias
    before = bias.clone()
    for case, details in info["cases"].items():
        bias.copy_(before if case == "track_occluded" else before + 6.0)
        points, count = None, 0
        if "coords" in details:
            count = len(details["labels"])
            points = {
                "point_coords": torch.tensor([details["coords"]]),
                "point_labels": torch.tensor([details["labels"]], dtype=torch.int32),
            }
        read.clear()
        predictor._forward_sam_heads(feature, point_inputs=points, high_res_features=fine, multimask_output=count <= 1)
        maps = [
            prompt_saliency(query, key, module.q_proj, module.k_proj, module.num_heads)
            for (query, key), module in zip(read, modules, strict=True)
        ]
        shown = torch.stack(maps).mean(0).view(64, 64)
        assert relative(shown, expected[f"{case}.attn"]) < 1e-4, case
    bias.copy_(before)
    for hook in hooks:
        hook.remove()
