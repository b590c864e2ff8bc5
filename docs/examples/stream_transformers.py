"""Tracks one object through a video as it comes in, with `transformers`, and writes a mask for every frame.

    python docs/examples/stream_transformers.py clip.mp4 --box 110,95,186,171 --out masks

Nothing is kept of a frame once its mask is written, so the video may have any length.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import Sam2VideoModel, Sam2VideoProcessor

from surgery import Recipe, sparsify, status
from surgery.video import open_video


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, track, and say what was left out."""
    parser = argparse.ArgumentParser(description="Track one object through a video, frame by frame.")
    parser.add_argument("video")
    parser.add_argument("--box", required=True, help="X0,Y0,X1,Y1 in pixels on the first frame")
    parser.add_argument("--model", default="facebook/sam2.1-hiera-large", help="Hub id or folder")
    parser.add_argument("--out", default="masks", type=Path)
    options = parser.parse_args(arguments)
    box = [float(value) for value in options.box.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Sam2VideoModel.from_pretrained(options.model).to(device)
    processor = Sam2VideoProcessor.from_pretrained(options.model)

    # A stream has no end: `trim_caches` makes the session forget what the model will not read again.
    recipe = Recipe.load("balanced").to_dict()
    recipe["operations"].append({"type": "trim_caches", "frames": 16, "images": True})
    sparsify(model, Recipe.from_dict(recipe))

    session = processor.init_video_session(inference_device=device)
    with torch.inference_mode():
        for index, frame in enumerate(open_video(options.video)):
            inputs = processor(images=frame, return_tensors="pt").to(device)
            if index == 0:
                processor.add_inputs_to_inference_session(
                    session, frame_idx=0, obj_ids=1, input_boxes=[[box]], original_size=inputs.original_sizes[0]
                )
            output = model(session, frame=inputs.pixel_values[0])
            (masks,) = processor.post_process_masks([output.pred_masks], original_sizes=inputs.original_sizes)
            Image.fromarray(masks[0, 0].cpu().numpy()).save(options.out / f"{index:05d}.png")
    print(status(model))


if __name__ == "__main__":
    main()
