"""A whole host in one file: a video model of a few layers, and all that the surgery must be told about it.

The model tracks objects by one memory frame each. Nothing in it is trained; its masks only have to depend on
everything.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core import seams
from surgery.core.access import seam
from surgery.core.attention import AttentionCall, Conditioning, MemoryCall, Projections
from surgery.core.evidence import record_evidence
from surgery.core.frame import ObjectStep
from surgery.core.host import BlockInfo, HostView
from surgery.core.parts import ATTENTION
from surgery.core.patching import Patched
from surgery.core.session import SessionHandle, Stores, VideoState
from surgery.core.steps import encode, image_features, step_of, stored

SIDE, PATCH, WIDTH = 64, 4, 16
WINDOWS = (4, 4, 4, 0)


class Attend(nn.Module):
    """Single-headed attention, without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, query: Tensor, memory: Tensor, pointers: int = 0) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.query(query), self.key(memory), self.value(memory))
        return self.out(mixed)


class Windowed(Attend):
    def forward(self, windows: Tensor) -> Tensor:  # type: ignore[override]
        tokens = windows.flatten(1, 2)
        return super().forward(tokens, tokens).reshape(windows.shape)


class Block(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.attn, self.mlp = window, Windowed(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        normed, window = self.before(tokens), self.window
        if window:
            count = normed.shape[1] // window
            cut = normed.reshape(count, window, count, window, WIDTH).transpose(1, 2).reshape(-1, window, window, WIDTH)
            mixed = self.attn(cut).reshape(count, count, window, window, WIDTH).transpose(1, 2).reshape(tokens.shape)
        else:
            mixed = self.attn(normed)
        tokens = tokens + mixed
        return tokens + self.mlp(self.after(tokens))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block(window) for window in WINDOWS)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch(pixels).permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Remember(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.past = Attend(), Attend()
        self.layers = [self]

    def forward(self, current: Tensor, memory: Tensor) -> Tensor:
        tokens = current.transpose(0, 1)
        tokens = tokens + self.own(tokens, tokens)
        return (tokens + self.past(tokens, memory.transpose(0, 1))).transpose(0, 1)


class ToySession:
    def __init__(self, frames: Tensor) -> None:
        self.frames, self.features = frames, dict[int, Tensor]()
        self.objects: dict[int, dict[int, dict[str, Tensor]]] = {}


class ToyModel(nn.Module):
    """Three calls: `prompt` an object with a point, `track` every frame in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.attention, self.decoder = Encoder(), Remember(), nn.Linear(WIDTH, 1)
        self.remember, self.prompts = nn.Linear(1, WIDTH), nn.Linear(1, 1)

    def prompt(self, session: ToySession, obj_id: int, row: int, column: int) -> Tensor:
        session.objects[obj_id] = {}
        mask = torch.full((1, SIDE // PATCH, SIDE // PATCH, 1), -1.0)
        mask[:, row, column] = 1.0
        return self.step(session, obj_id, 0, mask)

    def track(self, session: ToySession) -> Iterator[dict[int, Tensor]]:
        for frame in range(1, len(session.frames)):
            yield {obj_id: self.step(session, obj_id, frame, None) for obj_id in session.objects}

    def step(self, session: ToySession, obj_id: int, frame: int, given: Tensor | None) -> Tensor:
        features = self.look(session, frame)
        if given is None:
            memory = session.objects[obj_id][frame - 1]["memory"]
            tokens = self.attention(features.flatten(0, 2)[:, None], memory)
            features = tokens.reshape(features.shape)
        mask = self.decide(features, given)
        session.objects[obj_id][frame] = {"memory": self.remember(mask.tanh()).flatten(0, 2)[:, None]}
        return mask

    def look(self, session: ToySession, frame: int) -> Tensor:
        if frame not in session.features:
            session.features = {frame: self.encode(session.frames[frame][None])}
        return session.features[frame]

    def encode(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels)

    def decide(self, features: Tensor, given: Tensor | None) -> Tensor:
        return self.decoder(features) + (0.0 if given is None else 5.0 * given)


class ToyBlock(seams.Block):
    def _norm1(self, tokens: Tensor) -> Tensor:
        own: Any = self
        return own.before(tokens)

    def _norm2(self, tokens: Tensor) -> Tensor:
        own: Any = self
        return own.after(tokens)

    def _qkv(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        own: Any = self
        flat = tokens.reshape(-1, 1, WIDTH)
        return torch.stack([own.attn.query(flat), own.attn.key(flat), own.attn.value(flat)], 1)

    def _out(self, mixed: Tensor) -> Tensor:
        own: Any = self
        return own.attn.out(mixed)


class ToyAttend(seams.Attention):
    def forward(self, query: Tensor, memory: Tensor, pointers: int = 0) -> Tensor:
        own: Any = self
        forward, site = super().forward, self._surgery  # type: ignore[misc]
        if site.context is None:
            return forward(query, memory, pointers)

        def tables(tokens: int) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(tokens, WIDTH // 2, 2)

        parts = Projections(own.query, own.key, own.value, own.out, 1)
        call = AttentionCall(query[0], memory[0], memory[0], parts, tables, site.number, pointers, own.training)
        return self._call(call, lambda: forward(query, memory, pointers)[0])[None]


class ToyRemember(seams.MemoryAttentionPart):
    def __call__(self, current: Tensor, memory: Tensor) -> Tensor:
        stock = super().__call__
        call = MemoryCall(current, None, memory, 0, 1, 1)
        return self._conditioned(call, lambda call: stock(call.current, call.memory))


class ToyHandle(SessionHandle):
    def __init__(self, session: ToySession) -> None:
        super().__init__(vars(session), "surgery")
        self._session = session

    def home(self) -> weakref.ref[ToySession]:
        return weakref.ref(self._session)

    def features(self) -> dict[int, Any]:
        return self._session.features

    def keep(self, features: dict[int, Any]) -> None:
        self._session.features = features

    def outputs(self) -> dict[int, Stores]:
        return {obj_id: ({}, frames, {}) for obj_id, frames in self._session.objects.items()}


class ToyRoot(Patched):
    @seam
    def step(self, session: ToySession, obj_id: int, frame: int, given: Tensor | None) -> Tensor:
        own: Any = self
        surgery = own._surgery.surgery
        run = super().step  # type: ignore[misc]
        if not surgery.enabled:
            return run(session, obj_id, frame, given)
        handle = ToyHandle(session)
        with step_of(surgery, ObjectStep(handle, obj_id, dict(session.objects), frame, False, given is not None)):
            surgery.context.memory_frames = [Conditioning(0) if frame == 1 else frame - 1]
            mask = run(session, obj_id, frame, given)
        stored(surgery, handle, frame, [obj_id])
        return mask

    @seam
    def look(self, session: ToySession, frame: int) -> Tensor:
        own: Any = self
        run = super().look  # type: ignore[misc]
        return image_features(own._surgery.surgery, ToyHandle(session), frame, lambda: run(session, frame))

    @seam
    def encode(self, pixels: Tensor) -> Tensor:
        own: Any = self
        run = super().encode  # type: ignore[misc]
        return encode(own._surgery.surgery, pixels, lambda: run(pixels))

    @seam
    def decide(self, features: Tensor, given: Tensor | None) -> Tensor:
        own: Any = self
        mask = super().decide(features, given)  # type: ignore[misc]
        low = F.interpolate(mask.permute(0, 3, 1, 2), scale_factor=4)
        record_evidence(own._surgery.context, low, None, low.amax())
        return mask


class ToyHost(HostView):
    name, models = "toy", "toy ToyModel"
    root = ToyRoot
    seams: ClassVar[Mapping[str, type[Patched]]] = {
        "block": ToyBlock, "self_attention": ToyAttend, "cross_attention": ToyAttend, ATTENTION: ToyRemember,
    }  # fmt: skip

    @classmethod
    def matches(cls, model: object) -> bool:
        return isinstance(model, ToyModel)

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        session = home()
        return [ToyHandle(session)] if session is not None and vars(session).get("surgery") is state else []

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.encoder.blocks)

    def block_info(self, index: int) -> BlockInfo:
        return BlockInfo(index, WIDTH, 1, WINDOWS[index], pools=False)

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {name: tensor for name, tensor in own.items() if not name.startswith("shortcut.")}

    def patch_stride(self) -> int:
        return PATCH

    def stage_starts(self) -> tuple[int, ...]:
        return (0,)

    def image_size(self) -> int:
        return SIDE

    def mask_side(self) -> int:
        return SIDE

    def frame_side(self) -> int:
        return SIDE // PATCH

    def bank_size(self) -> int:
        return 1

    def pointers(self) -> int:
        return 0

    def memory_channels(self) -> int:
        return WIDTH

    def memory_horizon(self) -> int:
        return 1

    def image_encoder(self) -> nn.Module:
        return self.model.encoder

    def prompt_encoder(self) -> nn.Module:
        return self.model.prompts

    def memory_encoder(self) -> nn.Module:
        return self.model.remember

    def memory_attention(self) -> nn.Module:
        return self.model.attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.model.attention(current, memory)

    def cross_attentions(self) -> list[nn.Module]:
        return [self.model.attention.past]

    def self_attentions(self) -> list[nn.Module]:
        return [self.model.attention.own]

    def token_to_image(self) -> list[nn.Module]:
        return []

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        raise NotImplementedError("its decoder has no attention")

    def mask_decoder(self) -> nn.Module:
        return self.model.decoder

    def stride16_of(self, output: Tensor) -> Tensor:
        return output.flatten(0, 2)[:, None]

    def base_id(self) -> tuple[str | None, str | None]:
        return None, None
