"""Stock `sam2` (Meta's predictor, PyPI `sam2` 1.1.0): `SAM2VideoPredictor` and `SAM2VideoPredictorVOS`."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery.errors import ModelStateError, UnsupportedModelError
from surgery.graft import Graft
from surgery.hosts.base import BlockInfo, HostView, Turn
from surgery.hosts.control import encode, image_features, record_evidence, turn_of
from surgery.hosts.positions import Trunk
from surgery.hosts.sam2_parts import (
    Sam2CrossAttention,
    Sam2DecoderTap,
    Sam2LateBlock,
    Sam2MemoryAttention,
    Sam2MemoryLayer,
    Sam2NeckCodes,
    Sam2SelfAttention,
    Sam2SpanBlock,
)
from surgery.hosts.seam import in_turn, seam
from surgery.operations.trim_caches import drop_far
from surgery.retrieval.bank import Chunk, Conditioning
from surgery.session import SessionHandle, VideoState

_STATE_KEY = "surgery"
_CONDITIONING = (
    "frame_idx",
    "is_init_cond_frame",
    "current_vision_feats",
    "current_vision_pos_embeds",
    "feat_sizes",
    "output_dict",
    "num_frames",
    "track_in_reverse",
)
"""Parameters of the host's `_prepare_memory_conditioned_features`, in order."""


class Sam2Session(SessionHandle):
    """`inference_state`, a plain dict."""

    def __init__(self, inference_state: dict[str, Any]) -> None:
        super().__init__(inference_state, _STATE_KEY)

    def features(self) -> dict[int, Any]:
        found: dict[int, Any] = self.holder["cached_features"]
        return found

    def keep(self, features: dict[int, Any]) -> None:
        self.holder["cached_features"] = features


class _TracedFrame(dict[str, Any]):
    """One frame's stored output that reports when its memory is read."""

    def __init__(self, output: dict[str, Any], frame: Chunk, log: list[Chunk]) -> None:
        super().__init__(output)
        self._frame, self._log = frame, log

    def __getitem__(self, key: str) -> Any:
        if key == "maskmem_features":
            self._log.append(self._frame)
        return super().__getitem__(key)


class _TracedFrames:
    """Non-conditioning outputs of one object, wrapped one by one as the host asks for them."""

    def __init__(self, outputs: dict[int, dict[str, Any]], log: list[Chunk]) -> None:
        self._outputs, self._log = outputs, log

    def get(self, frame: int, default: Any = None) -> Any:
        output = self._outputs.get(frame)
        return default if output is None else _TracedFrame(output, frame, self._log)

    def __getitem__(self, frame: int) -> Any:
        return _TracedFrame(self._outputs[frame], frame, self._log)

    def __contains__(self, frame: int) -> bool:
        return frame in self._outputs

    def __iter__(self) -> Iterator[int]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)


class Sam2Root(Graft):
    """The predictor: some of its own methods, each calling the host's."""

    _surgery: Sam2View

    @seam
    def propagate_in_video(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As the host's; the objects of a frame are tracked under one and the same surgery."""
        return in_turn(self, super().propagate_in_video(*args, **kwargs))  # type: ignore[misc, arg-type]

    @seam
    def _run_single_frame_inference(
        self, inference_state: dict[str, Any], output_dict: Any, frame_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        def run() -> Any:
            return super(Sam2Root, self)._run_single_frame_inference(  # type: ignore[misc]
                inference_state, output_dict, frame_idx, *args, **kwargs
            )

        binding = self._surgery.binding
        if not binding.enabled:
            return run()
        self._surgery.structure.require()
        names = ("batch_size", "is_init_cond_frame", "point_inputs", "mask_inputs", "reverse", "run_mem_encoder")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        per_object = inference_state["output_dict_per_obj"]
        position = next((idx for idx, outputs in per_object.items() if outputs is output_dict), None)
        if position is None:
            raise ModelStateError("the predictor tracks an object that its own inference_state does not list")
        turn = Turn(
            handle=Sam2Session(inference_state),
            obj_id=inference_state["obj_idx_to_id"][position],
            objects={inference_state["obj_idx_to_id"][idx]: outputs for idx, outputs in per_object.items()},
            frame=frame_idx,
            reverse=bool(given["reverse"]),
            prompted=bool(given["is_init_cond_frame"])
            or given["point_inputs"] is not None
            or given["mask_inputs"] is not None
            or not given["run_mem_encoder"],
        )
        with turn_of(binding, turn, len(self._surgery.token_to_image())):
            outputs = run()
        keep = binding.caches.frames if binding.caches is not None else None
        if keep is not None and not turn.prompted:
            drop_far(output_dict["non_cond_frame_outputs"], frame_idx, keep)
            drop_far(inference_state["frames_tracked_per_obj"][position], frame_idx, keep)
        return outputs

    @seam
    def _get_image_feature(self, inference_state: dict[str, Any], frame_idx: int, batch_size: int) -> Any:
        def run() -> Any:
            return super(Sam2Root, self)._get_image_feature(inference_state, frame_idx, batch_size)  # type: ignore[misc]

        return image_features(self._surgery.binding, Sam2Session(inference_state), frame_idx, run)

    @seam
    def forward_image(self, img_batch: Tensor) -> Any:
        def run() -> Any:
            return super(Sam2Root, self).forward_image(img_batch)  # type: ignore[misc]

        return encode(self._surgery, img_batch, run)

    @seam
    def _prepare_memory_conditioned_features(self, *args: Any, **kwargs: Any) -> Any:
        binding = self._surgery.binding
        if binding.enabled and binding.retrieval is not None and binding.turn is not None:
            args, kwargs = (), {**dict(zip(_CONDITIONING, args, strict=False)), **kwargs}
            outputs = kwargs["output_dict"]
            log: list[Chunk] = []
            conditioning = outputs["cond_frame_outputs"]
            kwargs["output_dict"] = {
                **outputs,
                "cond_frame_outputs": {t: _TracedFrame(out, Conditioning(t), log) for t, out in conditioning.items()},
                "non_cond_frame_outputs": _TracedFrames(outputs["non_cond_frame_outputs"], log),
            }
            binding.chunks = log
        return super()._prepare_memory_conditioned_features(*args, **kwargs)  # type: ignore[misc]

    @seam
    def _forward_sam_heads(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._forward_sam_heads(*args, **kwargs)  # type: ignore[misc]
        self._record(outputs)
        return outputs

    @seam
    def _use_mask_as_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._use_mask_as_output(*args, **kwargs)  # type: ignore[misc]
        self._record(outputs)
        return outputs

    def _record(self, outputs: tuple[Any, ...]) -> None:
        """Outputs of the SAM heads: candidate logits first, IoU third, object score last."""
        view = self._surgery
        if view.binding.enabled:
            record_evidence(view.binding, outputs[0], outputs[2], outputs[-1])


class Sam2View(HostView):
    """A stock `SAM2VideoPredictor`."""

    name = "sam2"
    span_block = Sam2SpanBlock
    late_block = Sam2LateBlock
    cross_attention = Sam2CrossAttention
    self_attention = Sam2SelfAttention
    memory_attention_mixin = Sam2MemoryAttention
    decoder_attention = Sam2DecoderTap
    root = Sam2Root

    @classmethod
    def matches(cls, model: object) -> bool:
        """Whether `model` is a stock video predictor.

        Raises:
            UnsupportedModelError: an image predictor, a bare `SAM2Base`, or another model of the `sam2` package.
        """
        if not type(model).__module__.startswith(("sam2.", "surgery.")) and not any(
            base.__module__.startswith("sam2.") for base in type(model).__mro__
        ):
            return False
        from sam2.sam2_video_predictor import SAM2VideoPredictor

        if isinstance(model, SAM2VideoPredictor):
            return True
        raise UnsupportedModelError(
            f"{type(model).__name__} has no previous frame to route by; expected a SAM2VideoPredictor: build one with "
            "sam2.build_sam.build_sam2_video_predictor(config, checkpoint)"
        )

    def sessions_of(self, state: VideoState) -> list[SessionHandle]:
        # A plain dict takes no weak reference, so the garbage collector is asked who holds the state.
        holders = (each for each in gc.get_referrers(state) if isinstance(each, dict))
        return [Sam2Session(each) for each in holders if each.get(_STATE_KEY) is state]

    def blocks(self) -> Sequence[nn.Module]:
        trunk: Any = self.image_encoder().trunk
        if not hasattr(trunk, "blocks") or not hasattr(trunk, "stage_ends"):
            raise UnsupportedModelError(
                f"the image encoder's trunk is a {type(trunk).__name__}; expected Hiera, whose windowed blocks are "
                "what window routing acts on (recipe memory-only needs none)"
            )
        return list(trunk.blocks)

    def block_info(self, index: int) -> BlockInfo:
        block: Any = self.blocks()[index]
        return BlockInfo(
            index=index,
            dim=block.dim_out,
            heads=block.attn.num_heads,
            window=block.window_size,
            pools=bool(block.q_stride),
        )

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {name: tensor for name, tensor in own.items() if not name.startswith("shortcut.")}

    def patch_stride(self) -> int:
        return int(self.model.image_encoder.trunk.patch_embed.proj.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.model.image_encoder.trunk.stage_ends[:-1]))

    def image_size(self) -> int:
        return int(self.model.image_size)

    def reach(self) -> int:
        model = self.model
        stride, middle = model.memory_temporal_stride_for_eval, model.num_maskmem - 3
        memories = 1 + stride + max(0, middle) * stride
        return max(memories, model.max_obj_ptrs_in_encoder - 1)

    def image_encoder(self) -> nn.Module:
        return self.model.image_encoder

    def memory_attention(self) -> nn.Module:
        return self.model.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.model.memory_attention(
            curr=[current],
            curr_pos=[torch.zeros_like(current)],
            memory=memory,
            memory_pos=torch.zeros_like(memory),
            num_obj_ptr_tokens=pointers,
        )

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.model.memory_attention.layers]

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.memory_attention.layers]

    def lean(self) -> dict[type, type[Graft]]:
        from sam2.modeling.backbones.hieradet import Hiera
        from sam2.modeling.memory_attention import MemoryAttentionLayer
        from sam2.modeling.position_encoding import PositionEmbeddingSine

        return {Hiera: Trunk, PositionEmbeddingSine: Sam2NeckCodes, MemoryAttentionLayer: Sam2MemoryLayer}

    def token_to_image(self) -> list[nn.Module]:
        transformer = self.model.sam_mask_decoder.transformer
        return [
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        attention: Any = module
        return attention.q_proj, attention.k_proj, attention.num_heads

    def decoder_module(self) -> nn.Module:
        return self.model.sam_mask_decoder

    @property
    def current_argument(self) -> str:
        return "curr"

    def stride16(self, pixels: Tensor) -> Tensor:
        return self.image_encoder()(pixels)["backbone_fpn"][-1].flatten(2).permute(2, 0, 1)

    def base_id(self) -> tuple[str | None, str | None]:
        return None, None
