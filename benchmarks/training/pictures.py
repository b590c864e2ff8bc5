"""Openly licensed sample pictures of the scikit-image wheel: where the new world takes natural texture and edges from.

Nothing of them is kept in the repository; they are read from the installed package (`skimage/data/`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from surgery.errors import DatasetError

LICENCES = {
    "astronaut.png": "public domain (NASA)",
    "brick.png": "CC0 (CC0Textures)",
    "camera.png": "CC0 (Lav Varshney)",
    "cell.png": "CC0 (Paul Müller et al.)",
    "chelsea.png": "CC0 (Stefan van der Walt)",
    "clock_motion.png": "public domain (Stefan van der Walt)",
    "coffee.png": "CC0 (Rachel Michetti)",
    "grass.png": "CC0 (linolafett)",
    "gravel.png": "CC0 (CC0Textures)",
    "horse.png": "CC0 (Andreas Preuss); its silhouette only",
    "hubble_deep_field.jpg": "public domain (NASA)",
    "retina.jpg": "CC0 (Mikael Häggström)",
    "rocket.jpg": "public domain (SpaceX)",
    "text.png": "public domain (scikit-image)",
}
"""The pictures used, each with its licence as the documentation of `skimage.data` states it. The others of the wheel
are left out: their licence is not stated or not plain (`motorcycle_*`, `lfw_subset`, `coins`, `ihc`, `moon`, ...)."""

RICH = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""Photographs of scenes: these are drawn more often, and cut along their edges."""

_SIDE = 512


@cache
def picture(name: str) -> torch.Tensor:
    """Return a picture, float32 [3, H, W] in [0, 1], its longer side at most 512 pixels.

    Raises:
        DatasetError: scikit-image is not installed, or its wheel has no such picture.
    """
    image = _read(name).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


@cache
def horse() -> torch.Tensor:
    """Return the silhouette of a horse, float32 [1, 160, 160], 1 inside."""
    image = np.asarray(_read("horse.png").convert("L").resize((148, 148)), dtype=np.float32) / 255
    return F.pad(torch.from_numpy(1 - image)[None], (6, 6, 6, 6))


@cache
def segments(name: str) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return a photograph, float32 [3, h, w], and a partition of it along its edges, int64 [h, w]."""
    from skimage.segmentation import felzenszwalb

    whole = picture(name)
    small = F.interpolate(whole[None], scale_factor=0.5, mode="area")[0]
    labels = felzenszwalb(small.permute(1, 2, 0).numpy(), scale=120, sigma=0.6, min_size=150)
    return small, labels.astype(np.int64)


def cut_out(rng: np.random.Generator, side: int) -> torch.Tensor:
    """Return a piece of a photograph, one to three neighbouring segments: float32 [4, side, side], RGB and alpha."""
    from scipy.ndimage import binary_dilation

    image, labels = segments(RICH[int(rng.integers(len(RICH)))])
    mask = labels == labels[int(rng.integers(labels.shape[0])), int(rng.integers(labels.shape[1]))]
    for _ in range(int(rng.integers(3))):
        around = np.unique(labels[binary_dilation(mask, iterations=2) & ~mask])
        if len(around):
            mask |= labels == rng.choice(around)
    ys, xs = np.nonzero(mask)
    box = (slice(max(0, ys.min() - 2), ys.max() + 3), slice(max(0, xs.min() - 2), xs.max() + 3))
    piece = torch.cat([image[:, box[0], box[1]], torch.from_numpy(mask[box].astype(np.float32))[None]])
    piece = F.interpolate(piece[None], size=(side - 8, side - 8), mode="bilinear", align_corners=False)[0]
    return F.pad(piece, (4, 4, 4, 4))


def crop(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """Return a piece of a random picture at a random scale, float32 [3, height, width]."""
    names = RICH if rng.random() < 0.65 else tuple(name for name in LICENCES if name != "horse.png")
    whole = picture(names[int(rng.integers(len(names)))])
    most = min(whole.shape[1], whole.shape[2])
    side = int(most * rng.uniform(0.2, 1.0))
    tall, wide = side, side
    if height > width:
        wide = max(8, side * width // height)
    else:
        tall = max(8, side * height // width)
    top, left = (int(rng.integers(size - used + 1)) for size, used in zip(whole.shape[1:], (tall, wide), strict=True))
    piece = whole[:, top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        piece = piece.flip(2)
    if rng.random() < 0.3 and height == width:
        piece = piece.transpose(1, 2)
    smaller = height < tall
    return F.interpolate(piece[None], size=(height, width), mode="bilinear", align_corners=False, antialias=smaller)[
        0
    ].contiguous()


def _read(name: str) -> Image.Image:
    try:
        import skimage
    except ImportError as error:
        raise DatasetError("the new world needs scikit-image, whose sample pictures it takes texture from") from error
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise DatasetError(f"{path} is missing, expected one of the pictures of the scikit-image wheel")
    return Image.open(path)
