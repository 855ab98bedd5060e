"""States that earlier descents ended in, as starts of later ones.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092):
part of a batch starts where another descent on the same text ended, so training sees longer descents than
one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ReplayBuffer:
    """The last `capacity` sequences with the state [time, V] their descent ended in; the oldest leave first.

    A step of training:

        ids, state = buffer.extend(fresh_ids, generator=generator)
        out = model(ids, labels=ids, initial_state=state)
        buffer.push(ids, out.logits)

    States are kept in `dtype` on `device`: half precision on the host, where [time, V] logits fit.
    """

    def __init__(
        self, capacity: int, dtype: torch.dtype = torch.float16, device: torch.device | str = "cpu"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        self.capacity, self.dtype, self.device = capacity, dtype, torch.device(device)
        self._ids: Tensor | None = None
        self._states: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self._ids is None else len(self._ids)

    def push(self, input_ids: Int[Tensor, "batch time"], states: Float[Tensor, "batch time vocab"]) -> None:
        """Store final states (they are detached) as the newest.

        Raises ValueError for sequences of another length or vocabulary than those stored.
        """
        states = states.detach()
        limit = torch.finfo(self.dtype).max
        # A state beyond half precision would come back infinite; its softmax is the same at the limit.
        ids, kept = (x[-self.capacity :].to(self.device) for x in (input_ids, states.clamp(-limit, limit)))
        kept = kept.to(self.dtype)
        if self._ids is None or self._states is None:
            self._ids, self._states = ids.clone(), kept.clone()
            return
        if kept.shape[1:] != self._states.shape[1:]:
            raise ValueError(
                f"this buffer holds states of shape {tuple(self._states.shape[1:])}, "
                f"got {tuple(kept.shape[1:])}"
            )
        self._ids = torch.cat([self._ids, ids])[-self.capacity :]
        self._states = torch.cat([self._states, kept])[-self.capacity :]

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Up to `count` different records: ids [k, time] and states [k, time, V]; they stay in the buffer.

        Raises ValueError where the buffer is empty.
        """
        if not len(self) or self._ids is None or self._states is None:
            raise ValueError("the replay buffer is empty: push states first")
        chosen = torch.randperm(len(self), generator=generator)[:count].to(self.device)
        return self._ids[chosen], self._states[chosen]

    def extend(
        self,
        input_ids: Int[Tensor, "batch time"],
        fraction: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """A batch with `fraction` times as many replays after it, and their states for `initial_state`.

        The batch alone and None while there is nothing to replay. Raises ValueError for another length.
        """
        count = int(fraction * len(input_ids))
        if not len(self) or count == 0:
            return input_ids, None
        ids, states = (x.to(input_ids.device) for x in self.draw(count, generator))
        if ids.shape[1] != input_ids.shape[1]:
            raise ValueError(
                f"this buffer holds sequences of {ids.shape[1]} tokens, got {input_ids.shape[1]}"
            )
        return torch.cat([input_ids, ids.to(input_ids.dtype)]), states.float()

    def state_dict(self) -> dict[str, Tensor]:
        """The records, oldest first; empty for an empty buffer."""
        if self._ids is None or self._states is None:
            return {}
        return {"input_ids": self._ids.clone(), "states": self._states.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the records of `state_dict()`; with a smaller capacity, the newest of them."""
        self._ids = self._states = None
        if state:
            self.push(state["input_ids"], state["states"].to(torch.promote_types(self.dtype, torch.float32)))
