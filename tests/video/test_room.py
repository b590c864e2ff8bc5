"""The room stands alone: no torch, no host, and PyAV only when a video file is touched."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import surgery.video

ROOM = Path(surgery.video.__file__).parent
ALLOWED = {"numpy", "PIL", "surgery"}


def imports(nodes: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    import sys

    tree = ast.parse(path.read_text())
    at_import = imports(tree.body)
    outside = {name for name in at_import if name.split(".")[0] not in ALLOWED | set(sys.stdlib_module_names)}
    assert not outside
    anywhere = imports([node for node in ast.walk(tree) if isinstance(node, ast.stmt)])
    assert "torch" not in {name.split(".")[0] for name in anywhere}
    ours = {name for name in anywhere if name.startswith("surgery")}
    assert all(
        name in ("surgery.errors", "surgery.files", "surgery.missing") or name.startswith("surgery.video")
        for name in ours
    )
