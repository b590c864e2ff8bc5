"""Surfaces: pieces of pictures, fractal noise, foliage, stripes, plain paint; all float32 [3, H, W] in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training.pictures import crop


def surface(rng: np.random.Generator, height: int, width: int, plain: float = 0.2) -> torch.Tensor:
    """Return a random surface; `plain` is the chance of nearly one colour, as paint and cloth have."""
    if rng.random() < plain:
        return paint(rng, height, width)
    kind = rng.random()
    if kind < 0.6:
        made = jitter(rng, crop(rng, height, width))
    elif kind < 0.78:
        made = tinted(rng, fractal(rng, height, width, rng.uniform(0.7, 2.2)))
    elif kind < 0.9:
        made = foliage(rng, height, width)
    else:
        made = stripes(rng, height, width)
    if rng.random() < 0.25:
        # Two surfaces, one showing through the other: more looks than there are pictures.
        share = fractal(rng, height, width, 1.8).sub(0.5).mul(rng.uniform(2, 12)).add(0.5).clamp(0, 1)
        made = made * share + surface(rng, height, width, 0.5) * (1 - share)
    return made


def colour(rng: np.random.Generator) -> torch.Tensor:
    """Return a colour float32 [3, 1, 1]; mostly as pale or dull as things are outdoors."""
    grey = rng.uniform(0.05, 0.95)
    strength = rng.beta(1.0, 3.0) * 0.9
    tint = rng.uniform(-1, 1, 3)
    return torch.tensor(grey + strength * 0.5 * (tint - tint.mean()), dtype=torch.float32).clamp(0, 1)[:, None, None]


def jitter(rng: np.random.Generator, image: torch.Tensor) -> torch.Tensor:
    """Return an image with other colours: channels mixed, turned to one or two tints, contrast and gamma changed."""
    kind = rng.random()
    if kind < 0.35:
        image = image[torch.from_numpy(rng.permutation(3))]
    elif kind < 0.6:
        mix = torch.from_numpy(rng.dirichlet([0.6] * 3, 3).astype(np.float32))
        image = torch.einsum("ij,jhw->ihw", mix, image)
    elif kind < 0.8:
        image = tinted(rng, image.mean(0, keepdim=True))
    if rng.random() < 0.1:
        image = 1 - image
    image = image.clamp(1e-3, 1).pow(math.exp(rng.normal(0, 0.35)))
    gain, lift = math.exp(rng.normal(0, 0.2)), rng.normal(0, 0.08)
    grey = image.mean()
    return ((image - grey) * gain + grey + lift).clamp(0, 1)


def tinted(rng: np.random.Generator, values: torch.Tensor) -> torch.Tensor:
    """Return grey values [1, H, W] between two or three random colours."""
    dark, light, middle = colour(rng), colour(rng), colour(rng)
    made = dark + (light - dark) * values
    if rng.random() < 0.4:
        made = made + (middle - 0.5 * (dark + light)) * 4 * values * (1 - values)
    return made.clamp(0, 1)


def paint(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """Return nearly one colour: a slope of brightness and a little grain."""
    slope = torch.linspace(-1, 1, height)[:, None] * rng.normal(0, 0.08)
    slope = slope + torch.linspace(-1, 1, width) * rng.normal(0, 0.08)
    grain = fractal(rng, height, width, rng.uniform(0, 2)) - 0.5
    return (colour(rng) + slope + grain * abs(rng.normal(0, 0.12))).clamp(0, 1)


def fractal(rng: np.random.Generator, height: int, width: int, slope: float) -> torch.Tensor:
    """Return 1/f^slope noise, float32 [1, H, W], spread over about [0, 1]."""
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None] * width * rng.uniform(0.6, 1.6)
    power = np.maximum(np.hypot(fy, fx), 1.0) ** -slope
    power[0, 0] = 0
    wave = rng.standard_normal(power.shape) + 1j * rng.standard_normal(power.shape)
    noise = np.fft.irfft2(wave * power, (height, width))
    noise = noise / (noise.std() + 1e-9)
    return torch.from_numpy((0.5 + 0.22 * noise).astype(np.float32)).clamp(0, 1)[None]


def foliage(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """Return overlapping small leaves, dark in their gaps: two scales of thresholded noise under each other."""
    base = colour(rng)
    made = base * 0.3
    for depth in (0.5, 0.8, 1.15):
        fine = max(4, int(min(height, width) * rng.uniform(0.15, 0.5)))
        leaf = fractal(rng, fine, fine, rng.uniform(0.2, 0.9))
        leaf = F.interpolate(leaf[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        there = ((leaf - rng.uniform(0.45, 0.6)) * 14).clamp(0, 1)
        shade = base * depth * (0.7 + 0.6 * leaf) + torch.from_numpy(rng.normal(0, 0.04, (3, 1, 1)).astype(np.float32))
        made = made * (1 - there) + shade * there
    return made.clamp(0, 1)


def stripes(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """Return stripes or checks, sharp or soft, a little bent."""
    ys, xs = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    turn, rate = rng.uniform(0, math.pi), rng.uniform(3, 25)
    bend = (fractal(rng, height, width, 2.2)[0] - 0.5) * rng.uniform(0, 3)
    wave = torch.sin((xs * math.cos(turn) + ys * math.sin(turn)) * rate * 2 * math.pi + bend)
    if rng.random() < 0.4:
        wave = wave * torch.sin((ys * math.cos(turn) - xs * math.sin(turn)) * rate * 2 * math.pi + bend)
    values = (wave * rng.uniform(0.6, 8)).clamp(-1, 1).mul(0.5).add(0.5)
    grain = (fractal(rng, height, width, 1.0)[0] - 0.5) * rng.uniform(0, 0.4)
    return tinted(rng, (values + grain).clamp(0, 1)[None])
