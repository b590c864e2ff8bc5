"""Adapters that come with the package: calibrated shortcuts and settings of the embedded demo model."""

from __future__ import annotations

from pathlib import Path

from surgery.digests import PACKAGE


def shipped_adapters() -> dict[str, Path]:
    """Return `{name: folder}` of the adapters that ship, such as `demo-balanced`, sorted by name."""
    # In a checkout, and so in an editable install, they lie at the top of the repository.
    for folder in (PACKAGE / "_adapters", PACKAGE.parent / "adapters"):
        if folder.is_dir():
            return {path.name: path for path in sorted(folder.iterdir()) if (path / "adapter_config.json").is_file()}
    return {}


def demo_adapter(recipe: str) -> Path | None:
    """The shipped adapter of the demo model that was calibrated under a built-in recipe, or None."""
    return shipped_adapters().get(f"demo-{recipe}")
