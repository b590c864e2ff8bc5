"""`transformers`: an object detector from the Hub, of any class of objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.errors import HubError, ModelLoadError


def load_detector(name: str, device: torch.device) -> Callable[[npt.NDArray[np.uint8]], tuple[Tensor, Tensor]]:
    """An `AutoModelForObjectDetection` by its Hub id or folder.

    Returns:
        A function of a picture RGB [H, W, 3]: boxes [n, 4] (x0, y0, x1, y1) in pixels and their scores [n], each the
        highest of any class.

    Raises:
        HubError: it could not be fetched, or there is none.
        ModelLoadError: what is there is no object detector.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        processor: Any = AutoImageProcessor.from_pretrained(name)
        model: Any = AutoModelForObjectDetection.from_pretrained(name).to(device).eval()
    except OSError as error:
        words = " ".join(str(error).split())
        raise HubError(f"cannot load detector {name}: {words}") from error
    except (ValueError, RuntimeError, ImportError) as error:
        raise ModelLoadError(
            f"{name} is not an object detector that transformers can load (AutoModelForObjectDetection): {error}"
        ) from error

    @torch.no_grad()
    def detect(image: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        inputs = processor(images=image, return_tensors="pt", input_data_format="channels_last").to(device)
        (found,) = processor.post_process_object_detection(
            model(**inputs), threshold=0.0, target_sizes=[image.shape[:2]]
        )
        return found["boxes"], found["scores"]

    return detect
