"""Stock `sam2`: the graft of the predictor itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from surgery.errors import ModelStateError
from surgery.graft import Graft
from surgery.hosts.base import HostView, ObjectStep
from surgery.hosts.control import encode, image_features, record_evidence, step_of
from surgery.hosts.sam2.session import Sam2Session, TracedFrame, TracedFrames
from surgery.hosts.seam import in_turn, seam
from surgery.operations.trim_caches import drop_far
from surgery.retrieval.bank import Conditioning, MemoryFrame

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


class Sam2Root(Graft):
    """The predictor: some of its own methods, each calling the host's."""

    _surgery: HostView

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
        with step_of(binding, step, len(self._surgery.token_to_image())):
            outputs = run()
        keep = binding.caches.frames if binding.caches is not None else None
        if keep is not None and not step.prompted:
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
        if binding.enabled and binding.retrieval is not None and binding.step is not None:
            args, kwargs = (), {**dict(zip(_CONDITIONING, args, strict=False)), **kwargs}
            outputs = kwargs["output_dict"]
            log: list[MemoryFrame] = []
            conditioning = outputs["cond_frame_outputs"]
            kwargs["output_dict"] = {
                **outputs,
                "cond_frame_outputs": {t: TracedFrame(out, Conditioning(t), log) for t, out in conditioning.items()},
                "non_cond_frame_outputs": TracedFrames(outputs["non_cond_frame_outputs"], log),
            }
            binding.memory_frames = log
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
