"""What `generate` carries from token to token: the state of every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from gradatim.models.memory_state import MemoryState


@dataclass(frozen=True)
class AttentionState:
    """Keys and values of the tokens so far.

    keys, values  [batch, heads, time, size]
    present       [batch, time] False where a sample has no token
    tokens        [batch] how many tokens each sample has seen
    """

    keys: Tensor
    values: Tensor
    present: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> AttentionState:
        """Every tensor passed through `change`."""
        return AttentionState(*(change(t) for t in (self.keys, self.values, self.present, self.tokens)))

    def select(self, index: Tensor) -> AttentionState:
        """The samples `index`, in that order."""
        return self.map(lambda t: t.index_select(0, index.to(t.device)))

    def detach(self) -> AttentionState:
        """The same numbers without their history."""
        return self.map(Tensor.detach)


LayerState = MemoryState | AttentionState


class HopeCache(Cache):
    """The states of all layers, replaced by every forward pass that is given this object.

    A memory has a fixed size, however long the text; what it has taken up cannot be taken back, so there is
    no `crop`. `get_seq_length` counts positions, padding included, as `generate` does.
    """

    def __init__(self, layers: int = 0, states: Sequence[LayerState] | None = None) -> None:
        super().__init__(layers=[])
        self.states: list[LayerState | None] = [None] * layers if states is None else list(states)
        self.seen = 0 if states is None or not states else int(states[0].tokens.max())

    def __len__(self) -> int:
        return len(self.states)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"HopeCache(layers={len(self.states)}, positions={self.seen})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions so far."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is none."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """False: states are new tensors at every step."""
        return False

    @property
    def is_linear(self) -> list[bool]:
        """False for every layer: a call that goes on with this object is given new tokens only."""
        return [False] * len(self.states)

    @property
    def is_croppable(self) -> bool:
        """False: a memory forgets nothing on demand."""
        return False

    @property
    def batch_size(self) -> int:
        """Samples, -1 before the first token."""
        first = self.states[0] if self.states else None
        return -1 if first is None else len(first)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search keeps these samples, in this order."""
        self._change(lambda state: state.select(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples."""
        self._change(lambda state: state.select(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sample `repeats` times in a row."""
        self._change(lambda state: state.map(lambda t: t.repeat_interleave(repeats, dim=0)))

    def crop(self, tokens_to_remove: int) -> None:
        """Raises RuntimeError unless nothing is to be removed."""
        if tokens_to_remove:
            raise RuntimeError("a memory cannot take back tokens: keep a copy of memory_state instead")

    def reset(self) -> None:
        """Forget everything."""
        self.states, self.seen = [None] * len(self.states), 0

    def activate_past_recording(self) -> None:
        """Raises RuntimeError: assisted generation would need to take back tokens."""
        raise RuntimeError("assisted generation needs a cache that can take back tokens; Hope has none")

    def _change(self, change: Callable[[Any], LayerState]) -> None:
        self.states = [None if state is None else change(state) for state in self.states]


def pack_order(mask: Tensor) -> Tensor | None:
    """[batch, time] indices that bring the tokens of every row to its front in their order, or None if so."""
    if not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return None
    return torch.argsort((~mask).to(torch.int8), dim=1, stable=True)


def rearrange(x: Tensor, order: Tensor) -> Tensor:
    """x [batch, time, width] by rows of indices [batch, time]."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x))
