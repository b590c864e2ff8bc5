"""Stock `sam2`: what is put in front of the predictor itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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
from surgery.hosts.sam21.names import arguments


class Sam2Root(Patched):
    """The predictor: some of its own methods, each calling the host's."""

    _surgery: RootSite

    @seam
    def propagate_in_video(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As the host's; the objects of a frame are tracked under one and the same surgery."""
        return in_turn(self, super().propagate_in_video(*args, **kwargs))  # type: ignore[misc, arg-type]

    @seam
    def _run_single_frame_inference(self, *args: Any, **kwargs: Any) -> Any:
        surgery, run = self._surgery.surgery, super()._run_single_frame_inference  # type: ignore[misc]
        if not surgery.enabled:
            return run(*args, **kwargs)
        surgery.structure.require()
        given = arguments(run, args, kwargs)
        state, stores = given["inference_state"], given["inference_state"]["output_dict_per_obj"]
        position = next((idx for idx, outputs in stores.items() if outputs is given["output_dict"]), None)
        if position is None:
            raise ModelStateError("the predictor tracks an object that its own inference_state does not list")
        step = ObjectStep(
            handle=Sam2Session(state),
            obj_id=state["obj_idx_to_id"][position],
            objects={state["obj_idx_to_id"][idx]: outputs for idx, outputs in stores.items()},
            frame=given["frame_idx"],
            reverse=bool(given["reverse"]),
            prompted=bool(given["is_init_cond_frame"])
            or given["point_inputs"] is not None
            or given["mask_inputs"] is not None
            or not given["run_mem_encoder"],
        )
        with step_of(surgery, step):
            outputs = run(*args, **kwargs)
        if not step.prompted:
            stored(surgery, step.handle, step.frame, [step.obj_id])
        return outputs

    @seam
    def _get_image_feature(self, inference_state: dict[str, Any], frame_idx: int, batch_size: int) -> Any:
        run = partial(super()._get_image_feature, inference_state, frame_idx, batch_size)  # type: ignore[misc]
        return image_features(self._surgery.surgery, Sam2Session(inference_state), frame_idx, run)

    @seam
    def forward_image(self, img_batch: Tensor) -> Any:
        run = partial(super().forward_image, img_batch)  # type: ignore[misc]
        return encode(self._surgery.surgery, img_batch, run)

    @seam
    def _prepare_memory_conditioned_features(self, *args: Any, **kwargs: Any) -> Any:
        context, run = self._surgery.context, super()._prepare_memory_conditioned_features  # type: ignore[misc]
        if context is None or not self._surgery.surgery.notes_memory_frames:
            return run(*args, **kwargs)
        given, log = arguments(run, args, kwargs), list[MemoryFrame]()
        outputs = given["output_dict"]
        conditioning = outputs["cond_frame_outputs"]
        given["output_dict"] = {
            **outputs,
            "cond_frame_outputs": {t: TracedFrame(out, Conditioning(t), log) for t, out in conditioning.items()},
            "non_cond_frame_outputs": TracedFrames(outputs["non_cond_frame_outputs"], log),
        }
        context.memory_frames = log
        return run(**given)

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
