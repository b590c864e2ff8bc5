"""The way of a new user: the README's install lines, the demo and the snippets, in a clean clone and environment.

    .venv/bin/python .ci/new_user.py [FOLDER]     needs git, and the network for pip alone

Everything lies in FOLDER, new, by default a temporary one. What runs is the built wheel and not the source tree. The
Hub is a cache in which the embedded miniature stands for the released model, so that snippets run as they are written.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

INSTALLED = """
import surgery
from importlib.metadata import files
from surgery.adapters.shipped import shipped_adapters
assert "site-packages" in surgery.__file__, surgery.__file__
assert "surgery/py.typed" in {str(name) for name in files("sam-surgery")}
assert "balanced" in surgery.list_recipes() and "demo-balanced" in shipped_adapters()
"""

# What the snippets open: a model in the Hub's cache, clips, and frames with a checkpoint for the stock host.
STAND_INS = """
from pathlib import Path
import torch
from PIL import Image
from surgery import demo
from surgery.hosts.transformers.driver import new_processor
from surgery.loading import load_model
from surgery.video import write_video

model = Path("hub/hub/models--facebook--sam2.1-hiera-large")
demo.load("transformers").save_pretrained(model / "snapshots/0")
new_processor(256).save_pretrained(model / "snapshots/0")
(model / "refs").mkdir()
(model / "refs/main").write_text("0")
for seed, name in enumerate(("a.mp4", "b.mp4", "clip.mp4")):
    write_video(name, demo.make_clip(seed, frames=12).frames, 12.0)
Path("frames").mkdir()
for index, frame in enumerate(demo.make_clip(0, frames=3).frames):
    Image.fromarray(frame).save(f"frames/{index:05d}.jpg")
torch.save({"model": load_model("random:large", "sam2", "cpu").state_dict()}, "sam2.1_hiera_large.pt")
"""


def walk(place: Path) -> None:
    """Go the whole way in an empty folder; the first step that fails ends it."""
    clone, work, venv = place / "clone", place / "work", place / "venv"
    work.mkdir()
    # What whoever runs this has set up would hide what a stranger meets.
    foreign = ("HF_", "PYTHON", "VIRTUAL_ENV")
    online = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    online |= {"PATH": f"{venv / 'bin'}:{online['PATH']}", "PIP_NO_COMPILE": "1"}
    # One thread: the miniature gains nothing by a second one, and threads that wait for each other cost the most.
    offline = {**online, "HF_HOME": str(work / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    step([sys.executable, "-m", "venv", venv], place, online)
    step(["git", "clone", "--quiet", ROOT, clone], place, online)
    step([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", place, clone], place, online)
    (wheel,) = place.glob("*.whl")
    for line in section("Install", "```\n(.*?)^```").splitlines():
        step(["bash", "-ec", line], clone, online)
        if '".[' in line:
            # The transformers host alone, and a wheel instead of the clone.
            step(["pip", "install", "--no-deps", "--force-reinstall", wheel], work, online)
            step(["python", "-c", INSTALLED], work, offline)
            step(["surgery", "demo", "--clips", "1", "--frames", "6", "--out", "demo"], work, offline)

    step(["python", "-c", STAND_INS], work, offline)
    for snippet in found(r"^```py(?:thon)?\n(.*?)^```"):
        step(["python", "-c", snippet], work, offline)
    for command in found(r"^(surgery track [^\n]*)$"):
        if "MODEL" not in command:
            step(["bash", "-ec", command], clone, offline)


def section(title: str, pattern: str) -> str:
    text = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(pattern, text, re.M | re.S)[0]


def found(pattern: str) -> list[str]:
    matches = re.findall(pattern, README, re.M | re.S)
    if not matches:
        raise SystemExit(f"new user: the README has nothing like {pattern}")
    return matches


def step(command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> None:
    words = [str(word) for word in command]
    print("new user:", *words, flush=True)
    began = time.monotonic()
    if code := subprocess.run(words, cwd=folder, env=environment, check=False).returncode:
        raise SystemExit(f"new user: exit code {code}")
    print(f"new user: {time.monotonic() - began:.0f} s\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        own = Path(sys.argv[1]).resolve()
        own.mkdir()
        walk(own)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            walk(Path(temporary))
