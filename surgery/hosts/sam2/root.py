"""Stock `sam2`: what is put in front of the predictor itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from surgery.core.access import in_turn, seam
from surgery.core.attention import Conditioning, MemoryFrame
from surgery.core.evidence import record_evidence
from surgery.core.frame import ObjectStep
from surgery.core.patching import Patched
from surgery.core.steps import encode, image_features, step_of, stored
from surgery.core.surgery import RootSite
from surgery.errors import ModelStateError
from surgery.hosts.sam2.session import Sam2Session, TracedFrame, TracedFrames

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


class Sam2Root(Patched):
    """The predictor: some of its own methods, each calling the host's."""

    _surgery: RootSite

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

        surgery = self._surgery.surgery
        if not surgery.enabled:
            return run()
        surgery.structure.require()
        names = ("batch_size", "is_init_cond_frame", "point_inputs", "mask_inputs", "reverse", "run_mem_encoder")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        per_object = inference_state["output_dict_per_obj"]
        position = next((idx for idx, outputs in per_object.items() if outputs is output_dict), None)
        if position is None:
            raise ModelStateError("the predictor tracks an object that its own inference_state does not list")
        step = ObjectStep(
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
        with step_of(surgery, step):
            outputs = run()
        if not step.prompted:
            stored(surgery, step.handle, frame_idx, [step.obj_id])
        return outputs

    @seam
    def _get_image_feature(self, inference_state: dict[str, Any], frame_idx: int, batch_size: int) -> Any:
        def run() -> Any:
            return super(Sam2Root, self)._get_image_feature(inference_state, frame_idx, batch_size)  # type: ignore[misc]

        return image_features(self._surgery.surgery, Sam2Session(inference_state), frame_idx, run)

    @seam
    def forward_image(self, img_batch: Tensor) -> Any:
        def run() -> Any:
            return super(Sam2Root, self).forward_image(img_batch)  # type: ignore[misc]

        return encode(self._surgery.surgery, img_batch, run)

    @seam
    def _prepare_memory_conditioned_features(self, *args: Any, **kwargs: Any) -> Any:
        context = self._surgery.context
        if context is not None and self._surgery.surgery.notes_memory_frames:
            args, kwargs = (), {**dict(zip(_CONDITIONING, args, strict=False)), **kwargs}
            outputs = kwargs["output_dict"]
            log: list[MemoryFrame] = []
            conditioning = outputs["cond_frame_outputs"]
            kwargs["output_dict"] = {
                **outputs,
                "cond_frame_outputs": {t: TracedFrame(out, Conditioning(t), log) for t, out in conditioning.items()},
                "non_cond_frame_outputs": TracedFrames(outputs["non_cond_frame_outputs"], log),
            }
            context.memory_frames = log
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
        record_evidence(self._surgery.context, outputs[0], outputs[2], outputs[-1])
