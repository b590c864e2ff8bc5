"""`transformers`: what is put in front of the model itself."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor

from surgery.core.access import seam
from surgery.core.attention import Conditioning
from surgery.core.evidence import record_evidence
from surgery.core.frame import ObjectStep
from surgery.core.patching import Patched
from surgery.core.steps import encode, image_features, step_of, stored
from surgery.core.surgery import RootSite
from surgery.hosts.sam21.names import arguments
from surgery.hosts.transformers.driver import TransformersDriver
from surgery.hosts.transformers.session import TransformersSession, require_image, require_session


class SessionRoot(Patched):
    """A model that is called with a session."""

    _surgery: RootSite

    @seam
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session, driver = kwargs.get("inference_session", *args[:1]), self._surgery.surgery.host.driver
        if session is not None and self._surgery.enabled:
            require_session(session, cast("type[TransformersDriver]", driver).session_kind)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class TransformersRoot(SessionRoot):
    """The model: some of its own methods, each calling the host's."""

    @seam
    def _run_single_frame_inference(self, *args: Any, **kwargs: Any) -> Any:
        surgery, run = self._surgery.surgery, super()._run_single_frame_inference  # type: ignore[misc]
        if not surgery.enabled:
            return run(*args, **kwargs)
        surgery.structure.require()
        given = arguments(run, args, kwargs)
        session = given["inference_session"]
        step = ObjectStep(
            handle=TransformersSession(session),
            obj_id=session.obj_idx_to_id(given["obj_idx"]),
            objects={session.obj_idx_to_id(place): held for place, held in session.output_dict_per_obj.items()},
            frame=given["frame_idx"],
            reverse=bool(given["reverse"]),
            # An object later in the host's loop may be the prompted one: all of them then share a dense frame.
            prompted=bool(given["is_init_cond_frame"])
            or given.get("point_inputs") is not None
            or given.get("mask_inputs") is not None,
            shared_prompt=bool(session.obj_with_new_inputs),
        )
        with step_of(surgery, step):
            return run(*args, **kwargs)

    @seam
    def _prepare_vision_features(self, inference_session: Any, frame_idx: int, batch_size: int) -> Any:
        session = TransformersSession(inference_session)
        require_image(inference_session, session.cached(), frame_idx)
        run = partial(super()._prepare_vision_features, inference_session, frame_idx, batch_size)  # type: ignore[misc]
        return image_features(self._surgery.surgery, session, frame_idx, run)

    @seam
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        run = partial(super().get_image_features, pixel_values, **kwargs)  # type: ignore[misc]
        return encode(self._surgery.surgery, pixel_values, run)

    @seam
    def _gather_memory_frame_outputs(
        self, inference_session: Any, obj_idx: int, frame_idx: int, track_in_reverse_time: bool = False
    ) -> Any:
        gathered = super()._gather_memory_frame_outputs(  # type: ignore[misc]
            inference_session, obj_idx, frame_idx, track_in_reverse_time
        )
        context = self._surgery.context
        if context is not None and self._surgery.surgery.notes_memory_frames:
            conditioning = inference_session.output_dict_per_obj[obj_idx]["cond_frame_outputs"]
            held = {id(output): frame for frame, output in conditioning.items()}
            sign = 1 if track_in_reverse_time else -1
            context.memory_frames = [
                Conditioning(held[id(output)]) if id(output) in held else frame_idx + sign * offset
                for offset, output in gathered
                if output is not None
            ]
        return gathered

    @seam
    def _batch_encode_memories(self, inference_session: Any, frame_idx: int, *args: Any, **kwargs: Any) -> None:
        super()._batch_encode_memories(inference_session, frame_idx, *args, **kwargs)  # type: ignore[misc]
        handle = TransformersSession(inference_session)
        stored(self._surgery.surgery, handle, frame_idx, list(inference_session.obj_ids))

    @seam
    def _use_mask_as_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._use_mask_as_output(*args, **kwargs)  # type: ignore[misc]
        record_evidence(self._surgery.context, outputs.pred_masks, None, outputs.object_score_logits)
        return outputs
