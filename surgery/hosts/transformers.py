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
from surgery.hosts.blocks import DecoderTap, MemoryCrossAttention, SpanBlock
from surgery.hosts.compiled import ATTENTION, CompiledPart, MaskDecoderPart
from surgery.hosts.control import encode, image_features, key_plan, record_evidence, turn_of
from surgery.hosts.keys import transformers_block_key
from surgery.hosts.query import MemorySelfAttention, conditioned
from surgery.retrieval.attention import Projections
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

    def cached(self) -> set[int]:
        return set(self.holder["cache"]._vision_features)

    def evict(self, frame: int) -> None:
        self.holder["cache"]._vision_features.pop(frame, None)


class TransformersSpanBlock(SpanBlock):
    """`Sam2MultiScaleBlock` of the routed span."""

    def _norm1(self, tokens: Tensor) -> Tensor:
        return self.layer_norm1(tokens)  # type: ignore[attr-defined]

    def _norm2(self, tokens: Tensor) -> Tensor:
        return self.layer_norm2(tokens)  # type: ignore[attr-defined]


class TransformersDecoderTap(DecoderTap):
    """`Sam2VideoAttention`, token to image."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._tap(query, key)
        return super().forward(query, key, value, *args, **kwargs)  # type: ignore[misc]


class TransformersCrossAttention(MemoryCrossAttention):
    """`Sam2VideoRoPEAttention` that reads memory."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        num_k_exclude_rope: int = 0,
        **kwargs: Any,
    ) -> Any:
        plan, route = self._surgery.binding.plan, self._surgery.binding.query
        if (plan is not None or route is not None) and query.shape[:2] == (1, 1):
            cos, sin = (table.reshape(-1, table.shape[-1])[:, ::2] for table in position_embeddings)
            out = self._planned(query[0, 0], key[0, 0], value[0, 0], cos, sin, plan, route, num_k_exclude_rope)
            if out is not None:
                return out[None, None], None
        return super().forward(  # type: ignore[misc]
            query=query,
            key=key,
            value=value,
            position_embeddings=position_embeddings,
            num_k_exclude_rope=num_k_exclude_rope,
            **kwargs,
        )

    def _projections(self) -> Projections:
        heads: int = self.num_attention_heads  # type: ignore[attr-defined]
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.o_proj, heads)  # type: ignore[attr-defined]


class TransformersSelfAttention(MemorySelfAttention):
    """`Sam2VideoRoPEAttention` among the tokens of the frame."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Any:
        route = self._surgery.binding.query
        if route is None:
            self._note(query[0, 0])
            return super().forward(  # type: ignore[misc]
                query=query, key=key, value=value, position_embeddings=position_embeddings, **kwargs
            )
        cos, sin = (table.reshape(-1, table.shape[-1])[:, ::2] for table in position_embeddings)
        return self._routed(query[0, 0], cos, sin, route)[None, None], None

    def _projections(self) -> Projections:
        heads: int = self.num_attention_heads  # type: ignore[attr-defined]
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.o_proj, heads)  # type: ignore[attr-defined]


class TransformersMemoryAttention(CompiledPart):
    """`Sam2VideoMemoryAttention`."""

    part = ATTENTION
    _surgery: TransformersView

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = (
            "current_vision_features",
            "memory",
            "current_vision_position_embeddings",
            "memory_posision_embeddings",
            "num_object_pointer_tokens",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        view, memory = self._surgery, given["memory"]
        pointers = given.get("num_object_pointer_tokens", 0)
        current, positions = given[names[0]], given.get(names[2])

        def run(taken: Tensor, places: Tensor | None) -> Tensor:
            if taken is current:
                return super(TransformersMemoryAttention, self).__call__(*args, **kwargs)  # type: ignore[misc]
            return super(TransformersMemoryAttention, self).__call__(  # type: ignore[misc]
                **{**given, names[0]: taken, names[2]: places}
            )

        with key_plan(
            view.binding,
            length=memory.shape[0],
            pointers=pointers,
            layers=len(self.layers),  # type: ignore[attr-defined]
            bank=view.model.num_maskmem,
            stride=1,
            device=memory.device,
        ):
            return conditioned(view.binding, current, positions, len(self.layers), run)  # type: ignore[attr-defined]


class TransformersMaskDecoder(MaskDecoderPart):
    """`Sam2VideoMaskDecoder`: the only place where all mask candidates are seen.

    `__call__` and not `forward`: a compiled forward that recorded evidence would be compiled anew on every frame.
    """

    _surgery: TransformersView

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        view = self._surgery
        if view.binding.enabled:
            masks, ious, _, score = outputs[:4]
            record_evidence(view.binding, masks, ious, score)
        return outputs


class TransformersRoot(Graft):
    """The model: five of its own seams, each calling the host's."""

    _surgery: TransformersView

    def _run_single_frame_inference(self, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(TransformersRoot, self)._run_single_frame_inference(*args, **kwargs)  # type: ignore[misc]

        binding = self._surgery.binding
        if not binding.enabled:
            return run()
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

    def _prepare_vision_features(self, inference_session: Any, frame_idx: int, batch_size: int) -> Any:
        def run() -> Any:
            return super(TransformersRoot, self)._prepare_vision_features(  # type: ignore[misc]
                inference_session, frame_idx, batch_size
            )

        return image_features(self._surgery.binding, TransformersSession(inference_session), frame_idx, run)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(TransformersRoot, self).get_image_features(pixel_values, **kwargs)  # type: ignore[misc]

        return encode(self._surgery, pixel_values, run)

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
            UnsupportedModelError: another model of the SAM family: image-only, EdgeTAM or SAM 3.
        """
        homes = [base.__module__ for base in type(model).__mro__]
        if not any(home.startswith("transformers.") for home in homes):
            return False
        from transformers import Sam2VideoModel

        if isinstance(model, Sam2VideoModel):
            return True
        kind = type(model).__name__
        video = hasattr(model, "memory_attention") and hasattr(model, "memory_encoder")
        if not video:
            raise UnsupportedModelError(
                f"{kind} has no memory and no previous frame to route by; expected a Sam2VideoModel: "
                'Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-large")'
            )
        raise UnsupportedModelError(
            f"{kind} tracks video, but not with a Hiera encoder and a full-resolution memory bank; expected a "
            "Sam2VideoModel (EdgeTAM and SAM 3 are not supported yet)"
        )

    def session_of(self, state: VideoState) -> SessionHandle | None:
        session = self.binding.states[state]()
        held = session is not None and vars(session).get(_STATE_KEY) is state
        return TransformersSession(session) if held else None

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
