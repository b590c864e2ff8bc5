"""`transformers`: `Sam2VideoModel` with `Sam2VideoInferenceSession`, streaming included."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.errors import UnsupportedModelError
from surgery.graft import Graft
from surgery.hosts.base import BlockInfo, HostView, Turn
from surgery.hosts.control import encode, image_features, record_evidence, turn_of
from surgery.hosts.keys import transformers_block_key
from surgery.hosts.positions import Trunk
from surgery.hosts.seam import seam
from surgery.hosts.transformers_parts import (
    TransformersCrossAttention,
    TransformersDecoderTap,
    TransformersLateBlock,
    TransformersMaskDecoder,
    TransformersMemoryAttention,
    TransformersNeckCodes,
    TransformersSelfAttention,
    TransformersSpanBlock,
)
from surgery.hosts.transformers_trim import require_image, trim
from surgery.retrieval.bank import Conditioning
from surgery.session import SessionHandle, VideoState

_STATE_KEY = "_surgery"


class TransformersSession(SessionHandle):
    """`Sam2VideoInferenceSession`, an object with a `__dict__`."""

    def __init__(self, session: Any) -> None:
        super().__init__(vars(session), _STATE_KEY)
        self._session = session

    def home(self) -> weakref.ref[Any]:
        return weakref.ref(self._session)

    def features(self) -> dict[int, Any]:
        found: dict[int, Any] = self.holder["cache"]._vision_features
        return found

    def keep(self, features: dict[int, Any]) -> None:
        self.holder["cache"]._vision_features = features


class TransformersRoot(Graft):
    """The model: some of its own methods, each calling the host's."""

    _surgery: TransformersView

    @seam
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    @seam
    def _run_single_frame_inference(self, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(TransformersRoot, self)._run_single_frame_inference(*args, **kwargs)  # type: ignore[misc]

        binding = self._surgery.binding
        if not binding.enabled:
            return run()
        self._surgery.structure.require()
        names = (
            "inference_session",
            "frame_idx",
            "obj_idx",
            "batch_size",
            "is_init_cond_frame",
            "point_inputs",
            "mask_inputs",
            "reverse",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        session = given["inference_session"]
        obj_ids = tuple(session.obj_ids)
        outputs = session.output_dict_per_obj
        turn = Turn(
            handle=TransformersSession(session),
            obj_id=session.obj_idx_to_id(given["obj_idx"]),
            objects={obj_id: outputs[session.obj_id_to_idx(obj_id)] for obj_id in obj_ids},
            frame=given["frame_idx"],
            reverse=bool(given["reverse"]),
            # An object later in the host's loop may be the prompted one: all of them then share a dense frame.
            prompted=bool(given["is_init_cond_frame"])
            or given.get("point_inputs") is not None
            or given.get("mask_inputs") is not None,
            shared_prompt=bool(session.obj_with_new_inputs),
        )
        with turn_of(binding, turn, len(self._surgery.token_to_image())):
            return run()

    @seam
    def _prepare_vision_features(self, inference_session: Any, frame_idx: int, batch_size: int) -> Any:
        session = TransformersSession(inference_session)
        require_image(inference_session, session.cached(), frame_idx)

        def run() -> Any:
            return super(TransformersRoot, self)._prepare_vision_features(  # type: ignore[misc]
                inference_session, frame_idx, batch_size
            )

        return image_features(self._surgery.binding, session, frame_idx, run)

    @seam
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(TransformersRoot, self).get_image_features(pixel_values, **kwargs)  # type: ignore[misc]

        return encode(self._surgery, pixel_values, run)

    @seam
    def _gather_memory_frame_outputs(
        self, inference_session: Any, obj_idx: int, frame_idx: int, track_in_reverse_time: bool = False
    ) -> Any:
        gathered = super()._gather_memory_frame_outputs(  # type: ignore[misc]
            inference_session, obj_idx, frame_idx, track_in_reverse_time
        )
        binding = self._surgery.binding
        if binding.enabled and binding.turn is not None and binding.retrieval is not None:
            conditioning = inference_session.output_dict_per_obj[obj_idx]["cond_frame_outputs"]
            held = {id(output): frame for frame, output in conditioning.items()}
            sign = 1 if track_in_reverse_time else -1
            binding.chunks = [
                Conditioning(held[id(output)]) if id(output) in held else frame_idx + sign * offset
                for offset, output in gathered
                if output is not None
            ]
        return gathered

    @seam
    def _batch_encode_memories(self, inference_session: Any, frame_idx: int, *args: Any, **kwargs: Any) -> None:
        super()._batch_encode_memories(inference_session, frame_idx, *args, **kwargs)  # type: ignore[misc]
        binding = self._surgery.binding
        if binding.enabled and binding.caches is not None:
            state = binding.state_of(TransformersSession(inference_session))
            trim(binding.caches, inference_session, state, frame_idx)

    @seam
    def _use_mask_as_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._use_mask_as_output(*args, **kwargs)  # type: ignore[misc]
        view = self._surgery
        if view.binding.enabled:
            record_evidence(view.binding, outputs.pred_masks, None, outputs.object_score_logits)
        return outputs


class TransformersView(HostView):
    """A `Sam2VideoModel`."""

    name = "transformers"
    span_block = TransformersSpanBlock
    late_block = TransformersLateBlock
    cross_attention = TransformersCrossAttention
    self_attention = TransformersSelfAttention
    memory_attention_mixin = TransformersMemoryAttention
    decoder_attention = TransformersDecoderTap
    root = TransformersRoot
    decoder = TransformersMaskDecoder

    @classmethod
    def matches(cls, model: object) -> bool:
        """Whether `model` is a `Sam2VideoModel`.

        Raises:
            UnsupportedModelError: another model of transformers; EdgeTAM, SAM 3 and models for pictures by name.
        """
        homes = [base.__module__ for base in type(model).__mro__]
        if not any(home.startswith("transformers.") for home in homes):
            return False
        from transformers import Sam2VideoModel

        if isinstance(model, Sam2VideoModel):
            return True
        kind = type(model).__name__
        expected = 'expected a Sam2VideoModel: Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-large")'
        family = next((name for name in ("EdgeTam", "Sam3") if kind.startswith(name)), None)
        if family is not None:
            shown = {"EdgeTam": "EdgeTAM", "Sam3": "SAM 3"}[family]
            raise UnsupportedModelError(f"{kind} is of {shown}, which is not supported yet; {expected}")
        if "Sam" in kind:
            raise UnsupportedModelError(
                f"{kind} is for pictures: it has no memory and no previous frame to route by; {expected}"
            )
        raise UnsupportedModelError(f"{kind} is not a SAM 2 video model; {expected}")

    def sessions_of(self, state: VideoState) -> list[SessionHandle]:
        session = self.binding.states[state]()
        held = session is not None and vars(session).get(_STATE_KEY) is state
        return [TransformersSession(session)] if held else []

    def blocks(self) -> Sequence[nn.Module]:
        backbone = self.model.vision_encoder.backbone
        if not hasattr(backbone, "blocks") or not hasattr(backbone, "stage_ends"):
            raise UnsupportedModelError(
                f"the vision encoder's backbone is a {type(backbone).__name__}; expected Sam2HieraDetModel, whose "
                "windowed blocks are what window routing acts on (recipe memory-only needs none)"
            )
        return list(backbone.blocks)

    def block_info(self, index: int) -> BlockInfo:
        block: Any = self.blocks()[index]
        return BlockInfo(
            index=index,
            dim=block.dim_out,
            heads=block.attn.num_attention_heads,
            window=block.window_size,
            pools=bool(block.query_stride),
        )

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {transformers_block_key(name): value for name, value in own.items() if not name.startswith("shortcut.")}

    def patch_stride(self) -> int:
        return int(self.model.vision_encoder.backbone.patch_embed.projection.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.model.vision_encoder.backbone.stage_ends[:-1]))

    def image_size(self) -> int:
        size = self.model.config.vision_config.backbone_config.image_size
        return int(size[0] if isinstance(size, (list, tuple)) else size)

    def reach(self) -> int:
        config = self.model.config
        return max(self.model.num_maskmem, config.max_object_pointers_in_encoder) - 1

    def image_encoder(self) -> nn.Module:
        return self.model.vision_encoder

    def memory_attention(self) -> nn.Module:
        return self.model.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.model.memory_attention(
            current_vision_features=current,
            current_vision_position_embeddings=torch.zeros_like(current),
            memory=memory,
            memory_posision_embeddings=torch.zeros_like(memory),
            num_object_pointer_tokens=pointers,
        )

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.model.memory_attention.layers]

    def lean(self) -> dict[type, type[Graft]]:
        from transformers.models.sam2.modeling_sam2 import (
            Sam2HieraDetModel,
            Sam2MultiScaleAttention,
            Sam2SinePositionEmbedding,
        )

        from surgery.hosts.transformers_encoder import TransformersEncoderAttention

        return {
            Sam2MultiScaleAttention: TransformersEncoderAttention,
            Sam2HieraDetModel: Trunk,
            Sam2SinePositionEmbedding: TransformersNeckCodes,
        }

    def mask_decoder(self) -> nn.Module | None:
        return self.model.mask_decoder

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.memory_attention.layers]

    def token_to_image(self) -> list[nn.Module]:
        transformer = self.model.mask_decoder.transformer
        return [
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        attention: Any = module
        return attention.q_proj, attention.k_proj, attention.num_attention_heads

    def decoder_module(self) -> nn.Module:
        return self.model.mask_decoder

    @property
    def current_argument(self) -> str:
        return "current_vision_features"

    def stride16(self, pixels: Tensor) -> Tensor:
        return self.image_encoder()(pixels).fpn_hidden_states[-1].flatten(2).permute(2, 0, 1)

    def base_id(self) -> tuple[str | None, str | None]:
        config = self.model.config
        name = getattr(config, "_name_or_path", None) or None
        # A folder of this machine means nothing elsewhere.
        return (None, None) if name is None or Path(name).exists() else (name, getattr(config, "_commit_hash", None))
