"""Adapters of a proposal head: what `fit_everything` made, out of a model into a folder, and back.

The same four files as of every adapter. `kind: proposals` in the configuration tells them apart.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from surgery.adapters.card import HERE, render
from surgery.adapters.config import BaseModelInfo, Held, ProposalConfig
from surgery.adapters.fingerprint import Match, compare_weights, fingerprint_of
from surgery.adapters.tensors import encode, read_exactly, shapes_of, trained
from surgery.adapters.warned import require_base
from surgery.core.host import HostView
from surgery.core.surgery import Surgery
from surgery.errors import AdapterMismatchError, ModelStateError
from surgery.operations.segment_everything import Everything
from surgery.operations.segment_everything.head import ProposalHead

_MOST_BYTES = 1_000_000


class ProposalAdapter(Held[ProposalConfig]):
    """One of `segment_everything`: the proposal head."""

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

    def files(self, adapter_id: str = HERE) -> dict[str, bytes]:
        """The four files by name."""
        facts = {"recipe": self.recipe, "parameters": self.parameters, "base": self.config.base_model.id}
        return self.folder(encode(self.tensors), render("proposals.md.j2", adapter=adapter_id, **facts))


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
    tensors = trained(bound.head, "proposal head")
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


def read_head(path: Path, config: ProposalConfig) -> dict[str, Tensor]:
    """The head's state dict, fp32. Raises AdapterError naming the file and what is wrong with it."""
    with torch.device("meta"):
        wanted = shapes_of(ProposalHead(config.channels).state_dict())
    found = read_exactly(path, wanted, _MOST_BYTES, "a proposal head")
    return {name: value.float() for name, value in found.items()}
