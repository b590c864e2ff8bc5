"""What the fuzz asks of a host beyond `Driver`: prompts of every kind with their masks, and where modules are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from surgery.demo import model as demo
from surgery.hosts.transformers.driver import new_processor
from tests.fuzz.programs import Clear, Prompt
from tests.hosts.drive import Driver, square

_PROCESSOR: list[Any] = []
_MODULES = {
    "sam2": (
        "image_encoder.trunk.blocks.5", "image_encoder.neck", "memory_attention.layers.1",
        "sam_mask_decoder.transformer", "memory_encoder",
    ),
    "transformers": (
        "vision_encoder.backbone.blocks.5", "vision_encoder.neck", "memory_attention.layers.1",
        "mask_decoder.transformer", "memory_encoder",
    ),
}  # fmt: skip
"""By host, in the order of `PLACES`."""
PLACES = ("block", "neck", "memory attention", "decoder", "memory encoder")


def module_at(driver: Driver, place: str) -> nn.Module:
    """The module of one of `PLACES`."""
    module: nn.Module = driver.model.get_submodule(_MODULES[driver.host][PLACES.index(place)])
    return module


def processor() -> Any:
    """The one processor of the transformers host."""
    if not _PROCESSOR:
        _PROCESSOR.append(new_processor(demo.IMAGE_SIZE))
    return _PROCESSOR[0]


def objects(session: Any) -> list[int]:
    """Ids of the session's objects."""
    return list(session["obj_ids"] if isinstance(session, dict) else session.obj_ids)


def cached(session: Any) -> list[int]:
    """Frames whose image features the host holds."""
    return list(session["cached_features"] if isinstance(session, dict) else session.cache._vision_features)


def clear(driver: Driver, session: Any, step: Clear) -> None:
    """Take an object's prompts on a frame back."""
    if driver.host == "sam2":
        driver.model.clear_all_prompts_in_frame(session, step.frame, step.obj_id)
        return
    position = session.obj_id_to_idx(step.obj_id)
    session.remove_point_inputs(position, step.frame)
    session.remove_mask_inputs(position, step.frame)


def prompt(driver: Driver, session: Any, step: Prompt) -> dict[int, Tensor]:
    """Prompt, and return the host's masks of every object on that frame."""
    model, x, y = driver.model, step.x, step.y
    box = [x - 30, y - 30, x + 30, y + 30]
    if driver.host == "sam2":
        if step.kind == "mask":
            _, ids, masks = model.add_new_mask(session, step.frame, step.obj_id, square(x, y))
        else:
            how = {"box": box} if step.kind == "box" else {"points": [[x, y]], "labels": [1]}
            _, ids, masks = model.add_new_points_or_box(
                session, step.frame, step.obj_id, clear_old_points=not step.more, **how
            )
    else:
        how = {
            "mask": {"input_masks": square(x, y)},
            "box": {"input_boxes": [[box]]},
            "point": {"input_points": [[[[x, y]]]], "input_labels": [[[1]]]},
        }[step.kind]
        processor().add_inputs_to_inference_session(
            session, step.frame, step.obj_id, clear_old_inputs=not step.more, **how
        )
        out = model(session, frame_idx=step.frame)
        ids, masks = out.object_ids, out.pred_masks
    return {obj_id: mask.clone() for obj_id, mask in zip(list(ids), masks, strict=True)}
