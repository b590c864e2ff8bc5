"""Adapters of a proposal head: what `fit_everything` made, out of a model into a folder, and back.

The same four files as of every adapter. `kind: proposals` in the configuration tells them apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors.torch import save as encode_safetensors
from torch import Tensor

from surgery.adapters.config import CARD, CONFIG, RECIPE, WEIGHTS, BaseModelInfo, Part
from surgery.adapters.fingerprint import Match, compare_weights, fingerprint_of
from surgery.adapters.tensors import read_exactly
from surgery.adapters.warned import require_base
from surgery.core.host import HostView, finite
from surgery.core.surgery import Surgery
from surgery.errors import AdapterError, AdapterMismatchError, ModelStateError, RecipeError, WeightsError
from surgery.operations.segment_everything import Everything
from surgery.operations.segment_everything.head import ProposalHead
from surgery.recipe import Recipe
from surgery.validation import explain

KIND = "proposals"
MOST_BYTES = 1_000_000
_CARD = """---
library_name: surgery
tags: [sam2, mask-generation]
license: apache-2.0
---

# Proposal head for SAM 2, recipe `{name}`

{description}

{parameters:,} parameters, fitted without labels on masks of the base model{base} from a grid of points.
Nothing of the base model is in this folder.

```python
from surgery import everything, load_adapter

load_adapter(model, "{adapter}")
records = everything(model, image)
```

It fits one base model: other weights of encoder, prompt encoder or decoder are refused at load (`force=True`
overrides). What it misses of the grid's masks on other pictures is not known.

```yaml
{recipe}```
"""


class ProposalConfig(Part):
    """`adapter_config.json`. channels: of the features at strides 4, 8 and 16. base_model: its fingerprint is over
    encoder, prompt encoder and mask decoder."""

    kind: Literal["proposals"] = "proposals"
    schema_version: Literal[1] = 1
    library: Literal["surgery"] = "surgery"
    library_version: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[0-9A-Za-z.+!-]+$")]
    base_model: BaseModelInfo
    channels: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=3, max_length=3)]


@dataclass(frozen=True, eq=False)
class ProposalAdapter:
    """A validated one in memory. source: folder or `repo@commit`. tensors: the head's state dict."""

    source: str
    config: ProposalConfig
    recipe: Recipe
    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> int:
        """Number of added parameters."""
        return sum(value.numel() for value in self.tensors.values())

    def match(self, host: HostView) -> Match | None:
        """See `Adapter.match`."""
        driver = host.picture_driver()
        mine, theirs = tuple(self.config.channels), driver.channels()
        if mine != theirs:
            raise AdapterMismatchError(
                f"{self.source}: made for features of {mine} channels, this model's have {theirs}"
            )
        recorded = self.config.base_model.fingerprint
        return compare_weights(_ordered(driver.tensors()), recorded) if recorded is not None else None

    def fill(self, surgery: Surgery, force: bool) -> None:
        """Give the head these weights; errors and warnings as `Adapter.fill`."""
        bound = surgery.find(Everything)
        if bound is None or bound.head is None:
            return
        match = self.match(surgery.host)
        require_base(self.source, self.config.base_model.id, match, "encoder, prompt encoder or mask decoder", force)
        bound.head.load_state_dict(self.tensors)

    def files(self, adapter_id: str = "path/to/this/folder") -> dict[str, bytes]:
        """The four files by name."""
        base = self.config.base_model.id
        card = _CARD.format(
            name=self.recipe.metadata.name, description=self.recipe.metadata.description, parameters=self.parameters,
            base=f" `{base}`" if base else "", adapter=adapter_id, recipe=self.recipe.to_yaml(),
        )  # fmt: skip
        content = json.dumps(self.config.model_dump(), indent=2, sort_keys=True)
        return {
            CONFIG: content.encode() + b"\n",
            WEIGHTS: encode_safetensors(dict(sorted(self.tensors.items())), metadata={"format": "pt"}),
            RECIPE: self.recipe.to_yaml().encode(),
            CARD: card.encode(),
        }


def proposals_of(surgery: Surgery) -> ProposalAdapter | None:
    """The adapter of a model's fitted head; None where its recipe has none.

    Raises:
        ModelStateError: it was never fitted.
        WeightsError: it has values that are not finite.
    """
    from surgery import __version__

    bound, recipe = surgery.find(Everything), surgery.recipe
    if bound is None or bound.head is None or recipe is None:
        return None
    tensors = {name: value.detach().to("cpu", torch.float32) for name, value in bound.head.state_dict().items()}
    for name, value in tensors.items():
        if not finite(value):
            raise WeightsError(f"proposal head: {name} has values that are not finite")
    if not bound.head.fitted:
        raise ModelStateError("the proposal head is not fitted; call fit_everything first")
    driver = bound.driver()
    base_id, revision = surgery.host.base_id()
    config = ProposalConfig(
        library_version=__version__,
        base_model=BaseModelInfo(id=base_id, revision=revision, fingerprint=fingerprint_of(_ordered(driver.tensors()))),
        channels=[*driver.channels()],
    )
    return ProposalAdapter("this model", config, recipe, tensors)


def _ordered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(weights.items()))


def read_proposals(folder: Path, data: Any, source: str) -> ProposalAdapter:
    """Validate a folder whose configuration is `data`. Raises AdapterError naming the file and what is wrong."""
    try:
        config = ProposalConfig.model_validate(data)
    except ValidationError as error:
        raise AdapterError(f"{folder / CONFIG}: {explain(error, ProposalConfig)}") from error
    try:
        recipe = Recipe.load(folder / RECIPE)
    except RecipeError as error:
        raise AdapterError(str(error)) from error
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in ProposalHead(config.channels).state_dict().items()}
    found = read_exactly(folder / WEIGHTS, wanted, MOST_BYTES, "a proposal head")
    tensors = {name: value.float() for name, value in found.items()}
    return ProposalAdapter(source, config, recipe, tensors)
