"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from surgery import __version__
from surgery.hosts import hosts


def machine(device: torch.device) -> dict[str, Any]:
    """Platform, processor, cores, threads, device and package versions, as plain data."""
    return {
        "platform": platform.platform(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def device_name(device: torch.device) -> str:
    """`cpu`, `mps`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def not_measured(device: torch.device) -> list[dict[str, str]]:
    """The kinds of device this run says nothing about, and why."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    why = {True: "not measured: another device was asked for", False: "not measured: none on this machine"}
    return [{"device": kind, "reason": why[here]} for kind, here in present.items() if kind != device.type]


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _versions() -> dict[str, str]:
    found = {"surgery": __version__}
    for name in ("torch", *(host.loader.library.name for host in hosts()), "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
