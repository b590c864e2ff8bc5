"""The model card of an adapter: only what is known, never a number that was not measured."""

from __future__ import annotations

import yaml

from surgery.recipe import Recipe

_SNIPPET = """```python
from transformers import Sam2VideoModel          # or sam2.build_sam2_video_predictor(...)
from surgery import load_adapter
model = Sam2VideoModel.from_pretrained("{base}")
load_adapter(model, "path/to/this/folder")
```"""


def model_card(base_id: str | None, recipe: Recipe, parameters: int) -> str:
    """README.md of an adapter folder: Hub front matter, what it is, how to use it, its recipe."""
    front: dict[str, object] = {
        "library_name": "surgery",
        "pipeline_tag": "mask-generation",
        "license": "apache-2.0",
        "tags": ["sam2", "video-object-segmentation", "sparse", "adapter"],
    }
    if base_id:
        front |= {"base_model": base_id, "base_model_relation": "adapter"}
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# SAM 2 surgery adapter, recipe `{recipe.metadata.name}`",
            "",
            recipe.metadata.description,
            "",
            f"{parameters:,} parameters were added to the base model; nothing of the base model is in this folder.",
            "Fidelity and speed have not been measured for this adapter.",
            "",
            _SNIPPET.format(base=base_id or "the base model"),
            "",
            "```yaml",
            recipe.to_yaml().strip(),
            "```",
            "",
        ]
    )
