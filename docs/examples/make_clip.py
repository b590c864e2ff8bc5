"""Draws docs/examples/clip.mp4: one synthetic clip of 20 frames at 256 px, with one object.

python docs/examples/make_clip.py
"""

from pathlib import Path

import numpy as np

from surgery.demo.clips import HELD_OUT, make_clip
from surgery.video import write_video

SEED = HELD_OUT + 7
"""The demo model was trained on no clip of this number or above."""


PATH = Path(__file__).with_name("clip.mp4")


def main(path: Path = PATH) -> None:
    """Write the clip and print the box around its object on the first frame."""
    clip = make_clip(SEED, frames=20, size=256, difficulty="medium", objects=1)
    write_video(path, clip.frames, fps=12)
    rows, columns = np.nonzero(clip.labels[0] == 1)
    print(f"{path}: --box {columns.min()},{rows.min()},{columns.max()},{rows.max()}")


if __name__ == "__main__":
    main()
