"""What a camera and a codec do to a clip: light, softness, noise, JPEG; frames float32 [T, 3, S, S] in and out."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def wander(rng: np.random.Generator, frames: int, reach: float) -> NDArray[np.float64]:
    """Return a smooth random course, float64 [T], that starts at 0 and moves by about `reach` a frame."""
    time = np.arange(frames)
    rate, phase = rng.uniform(0.1, 0.7), rng.uniform(0, 2 * math.pi)
    wave = (np.sin(rate * time + phase) - math.sin(phase)) / rate
    return reach * (rng.normal(0, 0.8) * time + rng.normal(0, 0.8) * wave)


def light(rng: np.random.Generator, frames: torch.Tensor) -> torch.Tensor:
    """Change the exposure and the white balance, a little from frame to frame, and darken the corners."""
    count = len(frames)
    gain = np.exp(rng.normal(0, 0.15) + wander(rng, count, 0.02 if rng.random() < 0.3 else 0.003))
    tint = np.exp(rng.normal(0, 0.06, 3) + np.stack([wander(rng, count, 0.002) for _ in range(3)], 1))
    frames = frames * torch.from_numpy((gain[:, None] * tint).astype(np.float32))[..., None, None]
    if rng.random() < 0.3:
        line = torch.linspace(-1, 1, frames.shape[-1]).square()
        frames = frames * (1 - rng.uniform(0, 0.25) * (line[:, None] + line))
    return frames


def soften(rng: np.random.Generator, frames: torch.Tensor, chance: float) -> torch.Tensor:
    """Lose detail, as by focus or a small sensor: down and up again."""
    if rng.random() >= chance:
        return frames
    size = frames.shape[-2:]
    small = F.interpolate(frames, scale_factor=rng.uniform(0.4, 0.9), mode="bilinear", antialias=True)
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)


def develop(rng: np.random.Generator, frames: torch.Tensor) -> NDArray[np.uint8]:
    """Add contrast, noise and JPEG damage; return uint8 [T, S, S, 3]."""
    if rng.random() < 0.5:
        gamma = math.exp(rng.normal(0, 0.25))
        frames = frames.clamp(1e-3, 1).pow(gamma)
    if rng.random() < 0.25:
        grey = frames.mean(1, keepdim=True)
        frames = grey + (frames - grey) * rng.uniform(0.1, 1.4)
    if rng.random() < 0.6:
        noise = rng.standard_normal(frames.shape[:1] + frames.shape[2:], dtype=np.float32)
        frames = frames + torch.from_numpy(noise)[:, None] * rng.uniform(0.002, 0.035)
    made = frames.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return jpeg(made, int(rng.integers(35, 96))) if rng.random() < 0.5 else made


def jpeg(frames: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return frames after JPEG of a quality in 1 to 95."""
    from PIL import Image

    made = []
    for frame in frames:
        stored = io.BytesIO()
        Image.fromarray(frame).save(stored, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(stored)))
    return np.stack(made)
