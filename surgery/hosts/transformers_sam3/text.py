"""`transformers`: `Sam3VideoModel`, which finds what words say with a detector and follows it with SAM 3's tracker.

Its tracker has no encoder: it reads the detector's features, through a neck of its own, and its memories are encoded
after the masks of all objects were compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import nn

from surgery.core.access import seam
from surgery.core.driver import FrameSource
from surgery.core.host import HostView
from surgery.core.patching import Patched
from surgery.core.steps import encode, image_features, stored
from surgery.errors import UnsupportedModelError
from surgery.hosts.transformers.loader import PretrainedLoader
from surgery.hosts.transformers.root import SessionRoot, TransformersRoot
from surgery.hosts.transformers.session import TransformersSession
from surgery.hosts.transformers_sam3.driver import Sam3TrackerDriver
from surgery.hosts.transformers_sam3.loader import Sam3TrackerLoader
from surgery.hosts.transformers_sam3.view import Sam3ViTView


class Sam3VideoLoader(PretrainedLoader):
    """`Sam3VideoModel`, text encoder and detector included."""

    library = Sam3TrackerLoader.library
    title = Sam3TrackerLoader.title
    model, config, kinds = "Sam3VideoModel", "Sam3VideoConfig", ("sam3_video",)
    own: ClassVar[dict[str, Any]] = {}

    def example(self, base: str | None) -> None:
        """An adapter is of window routing."""


class Sam3VideoDriver(Sam3TrackerDriver):
    """There is none: the tools have prompts of places, and this model is prompted with words."""

    session_kind = "Sam3VideoInferenceSession"

    def __init__(self, view: HostView, frames: FrameSource, size: tuple[int, int]) -> None:
        raise UnsupportedModelError(
            "a Sam3VideoModel is prompted with words, which this tool does not take; call the model itself under "
            "sparsify, or load the tracker alone"
        )


class Sam3VideoRoot(SessionRoot):
    """`Sam3VideoModel`."""

    @seam
    def _tracker_update_memories(self, inference_session: Any, frame_idx: int, *args: Any, **kwargs: Any) -> None:
        super()._tracker_update_memories(inference_session, frame_idx, *args, **kwargs)  # type: ignore[misc]
        handle = TransformersSession(inference_session)
        stored(self._surgery.surgery, handle, frame_idx, list(inference_session.obj_ids))


class InnerTracker(TransformersRoot):
    """The `Sam3TrackerVideoModel` within."""

    @seam
    def _prepare_vision_features(self, inference_session: Any, frame_idx: int, batch_size: int) -> Any:
        surgery = self._surgery.surgery
        stock = super(TransformersRoot, self)._prepare_vision_features  # type: ignore[misc]
        run = partial(stock, inference_session, frame_idx, batch_size)

        def looked() -> Any:
            # Encoded by the detector already: what operations want to know of the frame they are told here.
            context = surgery.context
            if context is None or context.video.encoded == frame_idx:
                return run()
            return encode(surgery, inference_session.get_frame(frame_idx)[None], run)

        return image_features(surgery, TransformersSession(inference_session), frame_idx, looked)

    @seam
    def _batch_encode_memories(
        self, inference_session: Any, frame_idx: int, objects_needing_memory_encoding: list[int], **kwargs: Any
    ) -> None:
        if objects_needing_memory_encoding:
            super()._batch_encode_memories(inference_session, frame_idx, objects_needing_memory_encoding, **kwargs)


class Sam3VideoView(Sam3ViTView):
    """A `Sam3VideoModel`."""

    name = "transformers_sam3_text"
    models, kind = "transformers Sam3VideoModel", "transformers.models.sam3_video.modeling_sam3_video.Sam3VideoModel"
    has = "tracker_model"
    driver = Sam3VideoDriver
    loader = Sam3VideoLoader()
    root = Sam3VideoRoot

    @property
    def tracker(self) -> Any:
        return self.model.tracker_model

    def within(self) -> Sequence[tuple[nn.Module, type[Patched]]]:
        return [(self.tracker, InnerTracker)]

    def reads_everywhere(self) -> str | None:
        return (
            "a Sam3VideoModel finds new objects anywhere in a frame, by the features that its tracker reads as well: "
            "no window may be skipped; use a recipe without window routing, such as memory-only, or a "
            'Sam3TrackerVideoModel.from_pretrained("facebook/sam3") and prompts of your own'
        )

    def image_encoder(self) -> nn.Module:
        return self.model.detector_model.vision_encoder

    def image_size(self) -> int:
        return int(self.model.config.image_size)
