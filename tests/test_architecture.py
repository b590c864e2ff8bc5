"""Who may import whom (CONTRIBUTING.md), read from the source; and what a bare `import surgery` may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "surgery").rglob("*.py"))
MAX_LINES = 420
HOSTS = ("sam2", "transformers")  # each host library, and its files: surgery/hosts/<library>*.py
TENSOR_ROOMS = ("routing", "retrieval")
API_ROOMS = ("calibration", "evaluation", "bench", "report")
BESIDE = ("benchmarks", "tests")
HEAVY = {"torch", "torchvision", "transformers", "sam2", "huggingface_hub", "av", "matplotlib", "click"}


def imports(source: str, path: str) -> Iterator[tuple[str, bool]]:
    """Yield (dotted name, inside a function) of every import; `from a import b` yields `a.b`."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", lazy) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, lazy
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(source), False)


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one file; `path` is relative to the repository, with forward slashes."""
    room, filename = path.split("/")[1], path.split("/")[-1]
    broken = []
    for name, lazy in imports(source, path):
        top = name.split(".")[0]
        if top in HOSTS:
            own = room == "hosts" and filename.startswith(top)
            opener = room in ("demo", "cli", "loading.py")
            if not own and not (opener and lazy):
                broken.append(f"{path}: only surgery/hosts/{top}*.py imports {top} (demo, cli, loading: in functions)")
        if room in TENSOR_ROOMS and not (
            top in sys.stdlib_module_names
            or top in ("torch", "numpy")
            or within(name, f"surgery.{room}", "surgery.errors")
        ):
            broken.append(f"{path}: {room} knows tensors only, not {name}")
        if room != "cli" and within(name, "surgery.cli"):
            broken.append(f"{path}: nothing imports surgery.cli")
        if top in BESIDE:
            broken.append(f"{path}: {name} is no part of the installed package")
        if room in API_ROOMS and name.startswith(tuple(f"surgery.hosts.{host}" for host in HOSTS)):
            broken.append(f"{path}: {room} uses the public api, not {name}")
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        broken.append(f"{path}: {lines} lines, {MAX_LINES} are allowed")
    return broken


def test_every_file_keeps_the_rules() -> None:
    assert FILES, "no source found"
    broken = [
        line
        for file in FILES
        for line in violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n".join(dict.fromkeys(broken))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("surgery/api.py", "import sam2.build_sam"),
        ("surgery/api.py", "def f():\n    from transformers import Sam2VideoModel"),
        ("surgery/api.py", "from importlib import import_module\nimport_module('sam2')"),
        ("surgery/hosts/base.py", "import transformers"),
        ("surgery/hosts/sam2.py", "import transformers"),
        ("surgery/demo/model.py", "from sam2.build_sam import build_sam2_video_predictor"),
        ("surgery/demo/model.py", "class A:\n    import transformers"),
        ("surgery/routing/span.py", "from surgery.session import VideoState"),
        ("surgery/routing/span.py", "from ..recipe import Recipe"),
        ("surgery/routing/span.py", "from surgery import recipe"),
        ("surgery/routing/span.py", "import surgery"),
        ("surgery/routing/span.py", "from surgery.retrieval import bank"),
        ("surgery/retrieval/bank.py", "def f():\n    import yaml"),
        ("surgery/video/frames.py", "from surgery.cli.main import main"),
        ("surgery/report/build.py", "from surgery.hosts import sam2"),
        ("surgery/bench/timing.py", "import surgery.hosts.transformers_video"),
        ("surgery/demo/model.py", "def f():\n    from benchmarks.training import train"),
        ("surgery/errors.py", "x = 1\n" * (MAX_LINES + 1)),
    ],
)
def test_the_checker_sees_what_is_forbidden(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("surgery/hosts/sam2_attention.py", "from sam2.modeling.sam2_base import SAM2Base"),
        ("surgery/hosts/transformers.py", "from transformers import Sam2VideoModel\nfrom . import base"),
        ("surgery/hosts/__init__.py", "def f():\n    from surgery.hosts import sam2\n    return sam2"),
        ("surgery/loading.py", "def f():\n    import transformers"),
        ("surgery/routing/span.py", "import math\nimport torch\nfrom surgery.errors import X\nfrom . import router"),
        ("surgery/cli/track.py", "from surgery.cli.main import main\nfrom ..api import sparsify"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(path: str, source: str) -> None:
    assert not violations(path, source)


def _in_a_fresh_process(code: str) -> set[str]:
    """Top-level modules that `code` loads in a new interpreter, and "CUDA context" if one was made."""
    code += (
        "\nimport json, sys\nloaded = {name.split('.')[0] for name in sys.modules}"
        "\ntorch = sys.modules.get('torch')"
        "\nif torch is not None and torch.cuda.is_initialized(): loaded.add('CUDA context')"
        "\nprint(json.dumps(sorted(loaded)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_surgery_is_lean() -> None:
    found = _in_a_fresh_process("import surgery") & HEAVY
    assert not found


def test_the_public_names_load_no_host_library_and_no_cuda() -> None:
    code = "import surgery\nfor name in getattr(surgery, '__all__', ()): getattr(surgery, name)"
    found = _in_a_fresh_process(code) & {*HOSTS, "click", "matplotlib", "CUDA context"}
    assert not found
