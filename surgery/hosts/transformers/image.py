"""`transformers`: `Sam2Model`, which has no video."""

from __future__ import annotations

from torch import nn

from surgery.core.patching import Patched
from surgery.errors import UnsupportedModelError
from surgery.hosts.transformers.view import TransformersView


class TransformersImageView(TransformersView):
    """A model of pictures alone."""

    video = False
    root = Patched  # it runs as it is
    models, kind = "transformers Sam2Model", "transformers.models.sam2.modeling_sam2.Sam2Model"

    def memory_attention(self) -> nn.Module:
        raise UnsupportedModelError(f"a {type(self.model).__name__} has no memory attention")

    def memory_encoder(self) -> nn.Module:
        raise UnsupportedModelError(f"a {type(self.model).__name__} has no memory encoder")
