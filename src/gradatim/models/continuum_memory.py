r"""The continuum memory system (CMS): a chain of small networks, each written at its own frequency.

"Nested Learning" (2025, arXiv 2512.24695, Eq. 70-74) puts, in the place of a Transformer's MLP,

    y = MLP_k( ... MLP_2(MLP_1(x)))          kinds "sequential" and "nested"
    y = sum_l a_l MLP_l(x)                    kind "independent"

with MLP_l(x) = x + W1 sigma(W2 x), and writes level l every C_l steps with the gradient of the task loss
summed over them (`level_clocks`). One level that is never written is the Transformer's own MLP.

A memory is used in one of three ways:

- *in place*: `y = memory(x)`, `memory.update(loss)`: its parameters move as the stream goes by.
- *as a state*: `y = memory(x, state)`, `state = memory.update(loss, state)`: parameters are the initial
  state, trained by an outer loss that reaches them through every read (and, with writes="through", through
  every write); a state may belong to each sample alone.
- *under an optimizer of your own*: `MultiFrequency(factory, memory.groups())`.

Before believing in frequencies, compare with `memory.groups(rate_matched=True)`: every level at every step,
at the rate with which the slow ones move on average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gradatim.models.fast_linear import Linear
from gradatim.models.level_clocks import ContinuumState, LevelClocks, Partial, Values, advance, finish
from gradatim.models.level_writer import LevelWriter

Kind = Literal["sequential", "nested", "independent"]
KINDS = ("sequential", "nested", "independent")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


class MemoryMLP(nn.Module):
    """x + W1 sigma(W2 x); with `zero`, W1 starts at 0 and the network as the identity."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "gelu",
        *,
        zero: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.up = Linear(dim, hidden, bias=False)
        self.down = Linear(hidden, dim, bias=False)
        nn.init.normal_(self.up.weight, std=1 / math.sqrt(dim), generator=generator)
        nn.init.normal_(self.down.weight, std=0.0 if zero else 1 / math.sqrt(hidden), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return x + self.down(ACTIVATIONS[self.activation](self.up(x)))


class ContinuumMemory(nn.Module):
    """k memories written at k frequencies.

    Args:
        dim: width of x.
        periods: C_l in steps, the first level first; the paper's are ascending.
        hidden: units of each level; 4 * dim unless given.
        kind: "sequential" chain, "nested" chain whose faster levels start again when a slower chunk ends,
            "independent" levels side by side with learned weights a (initially 1/k).
        activation: "gelu", "silu", "relu" or "tanh".
        lr: eta_l of `update`, one or one per level.
        reduction: "sum" over a chunk as printed, or "mean".
        meta_rate: of the nested kind, see `level_clocks`.
        writes: for states: "stopgrad" treats written gradients as constants, "through" lets an outer loss
            differentiate through them.
        deferred: of in-place updates, see `LevelWriter`.
        generator: for the first weights.

    Raises ValueError for sizes or periods below 1, an unknown kind or activation, periods that do not divide
    one another in the nested kind.
    """

    def __init__(
        self,
        dim: int,
        periods: Sequence[int] = (1, 8, 64),
        hidden: int | None = None,
        kind: Kind = "sequential",
        activation: str = "gelu",
        *,
        lr: float | Sequence[float] = 0.01,
        reduction: Literal["sum", "mean"] = "sum",
        meta_rate: float = 0.5,
        writes: Literal["stopgrad", "through"] = "stopgrad",
        deferred: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        hidden = 4 * dim if hidden is None else hidden
        if dim < 1 or hidden < 1:
            raise ValueError(f"dim and hidden must be at least 1, got {dim} and {hidden}")
        made = [MemoryMLP(dim, hidden, activation, generator=generator) for _ in periods]
        options: dict[str, Any] = {"lr": lr, "reduction": reduction, "meta_rate": meta_rate, "writes": writes}
        self._build(made, periods, kind, deferred=deferred, **options)

    def _build(
        self,
        levels: Sequence[nn.Module],
        periods: Sequence[int],
        kind: str,
        *,
        lr: float | Sequence[float] = 0.01,
        reduction: str = "sum",
        meta_rate: float = 0.5,
        writes: str = "stopgrad",
        deferred: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if writes not in ("stopgrad", "through"):
            raise ValueError(f'writes must be "stopgrad" or "through", got {writes!r}')
        self.kind, self.writes = kind, writes
        self.clocks = LevelClocks.of(
            periods, lr, reduction=reduction, nested=kind == "nested", meta_rate=meta_rate
        )
        if len(levels) != len(self.clocks.periods):
            raise ValueError(f"{len(levels)} levels need as many periods, got {tuple(periods)}")
        self.levels = nn.ModuleList(levels)
        self.mix = (
            nn.Parameter(torch.full((len(levels),), 1 / len(levels))) if kind == "independent" else None
        )
        self.writer = LevelWriter(self.levels, self.clocks, deferred=deferred)

    @classmethod
    def from_mlp_blocks(
        cls,
        blocks: Sequence[nn.Module],
        periods: Sequence[int] | None = None,
        kind: Kind = "sequential",
        **options: Any,
    ) -> ContinuumMemory:
        """Levels copied from networks that are already trained, such as a Transformer's MLPs.

        Each block maps [..., dim] to [..., dim] and is used as it is, without a residual of ours. Periods
        default to 1, 8, 64, ... With `lr=0` the memory stays the chain of the blocks. `options` are those of
        the class.
        """
        memory = cls.__new__(cls)
        chosen = [8**i for i in range(len(blocks))] if periods is None else periods
        memory._build([copy.deepcopy(block) for block in blocks], chosen, kind, **options)
        return memory

    def forward(
        self, x: Float[Tensor, "*batch dim"], state: ContinuumState | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """y for every position; with a state per sample, axis 0 of x is the samples.

        Raises ValueError where a state per sample has another number of samples than x.
        """
        if state is not None and state.per_sample:
            samples = len(next(iter(state.fast[0].values())))
            if x.dim() < 2 or len(x) != samples:
                raise ValueError(f"the state belongs to {samples} samples, x has shape {tuple(x.shape)}")
        if self.mix is not None:
            answers = torch.stack([self._level(i, x, state) for i in range(len(self.levels))])
            return torch.tensordot(self.mix, answers, dims=1)
        for i in range(len(self.levels)):
            x = self._level(i, x, state)
        return x

    def _level(self, i: int, x: Tensor, state: ContinuumState | None) -> Tensor:
        level = self.levels[i]
        if state is None:
            return level(x)

        def one(values: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(level, values, (x,))

        values = dict(state.fast[i])
        return torch.vmap(one)(values, x) if state.per_sample else one(values, x)

    # -- states ----------------------------------------------------------------------------------------------

    def init_state(self, samples: int | None = None) -> ContinuumState:
        """The parameters as a state, shared by all samples or one for each of `samples`.

        Gradients of what is computed with it reach the parameters.
        """
        fast: list[Values] = []
        for level in self.levels:
            values: dict[str, Tensor] = {
                n: p if p.requires_grad else p.detach().requires_grad_() for n, p in level.named_parameters()
            }
            if samples is not None:
                values = {n: v.expand(samples, *v.shape) for n, v in values.items()}
            fast.append(values)
        empty: tuple[Values, ...] = tuple({} for _ in fast)
        return ContinuumState(tuple(fast), tuple(fast), empty, 0, samples is not None)

    def truncate(self, state: ContinuumState) -> ContinuumState:
        """Cut the history of writes: values stay, outer gradients go straight to the initial state."""
        initial = self.init_state(None)

        def cut(values: Values, origin: Values) -> Values:
            return {n: v.detach() + (origin[n] - origin[n].detach()) for n, v in values.items()}

        return ContinuumState(
            tuple(cut(v, o) for v, o in zip(state.fast, initial.fast, strict=True)),
            tuple(cut(v, o) for v, o in zip(state.start, initial.fast, strict=True)),
            tuple({n: g.detach() for n, g in held.items()} for held in state.sums),
            state.clock,
            state.per_sample,
        )

    def update(
        self, loss_or_grads: Tensor | Sequence[Values], state: ContinuumState | None = None, steps: int = 1
    ) -> ContinuumState | None:
        """Count `steps` steps and write the levels whose chunk ends.

        Without a state in place, see `LevelWriter.update`. With one, the written state is returned; the loss
        must then have been computed with that state, summed (not averaged) over samples that have states of
        their own, so that each state sees its own sample.
        """
        if state is None:
            self.writer.update(loss_or_grads, steps)
            return None
        gradients = loss_or_grads
        if isinstance(loss_or_grads, Tensor):
            gradients = self._state_gradients(loss_or_grads, state)
        return advance(self.clocks, state, gradients, steps)  # type: ignore[arg-type]

    def _state_gradients(self, loss: Tensor, state: ContinuumState) -> list[Values]:
        through = self.writes == "through"
        names = [(i, n) for i, values in enumerate(state.fast) for n in values]
        inputs = [state.fast[i][n] for i, n in names]
        # Writing with constants must not free a graph that an outer loss still needs.
        found = torch.autograd.grad(loss, inputs, create_graph=through, retain_graph=True, allow_unused=True)
        gradients: list[dict[str, Tensor]] = [{} for _ in state.fast]
        for (i, name), gradient in zip(names, found, strict=True):
            if gradient is not None:
                gradients[i][name] = gradient
        return list(gradients)

    def stream(
        self,
        x: Float[Tensor, "*batch time dim"],
        loss: Callable[[Tensor, slice], Tensor],
        state: ContinuumState | None = None,
        *,
        partial: Partial | None = None,
    ) -> tuple[Float[Tensor, "*batch time dim"], ContinuumState]:
        """Read a sequence chunk by chunk, writing as it goes; a step is a position.

        Inside a base chunk (gcd of the periods) all levels are frozen and positions run in parallel; no
        output depends on later positions. `loss(y, where)` is the loss of the outputs y at positions
        `where`, summed over them. `partial` says what becomes of unfinished chunks at the end.

        Raises ValueError where the longest period exceeds the sequence and `partial` is not given; a
        RuntimeError names the step at which a memory was no longer finite.
        """
        time, chunk = x.shape[-2], self.clocks.chunk
        if partial is None and max(self.clocks.periods) > time:
            raise ValueError(
                f"a chunk of {max(self.clocks.periods)} steps does not end within {time} positions: say "
                'partial="carry", "flush" or "drop"'
            )
        state = self.init_state(len(x) if x.dim() > 2 else None) if state is None else state
        outputs, first = [], 0
        while first < time:
            last = min(first + chunk - state.clock % chunk, time)
            where = slice(first, last)
            y = self(x[..., where, :], state)
            state_after = self.update(loss(y, where), state, last - first)
            assert state_after is not None
            state = state_after
            outputs.append(y)
            first = last
        return torch.cat(outputs, dim=-2), finish(self.clocks, state, partial or "carry")

    # -- in place --------------------------------------------------------------------------------------------

    def reset(self, level: int | None = None) -> None:
        """Return one level, or all, to where in-place updates began."""
        self.writer.reset(level)

    def finish(self, partial: Partial) -> None:
        """End a stream of in-place updates."""
        self.writer.finish(partial)

    def freeze(self, frozen: bool = True) -> None:
        """While frozen, in-place updates do nothing."""
        self.writer.frozen = frozen

    # -- under an optimizer ----------------------------------------------------------------------------------

    def groups(self, lr: float | None = None, *, rate_matched: bool = False) -> list[dict[str, Any]]:
        """Parameter groups for `gradatim.optim.MultiFrequency`, see `LevelWriter.groups`.

        The mixing weights of the independent kind are a group of period 1.
        """
        found = self.writer.groups(lr, rate_matched=rate_matched)
        if self.mix is not None:
            found.append({"params": [self.mix], "period": 1, "reduction": "sum", "lr": found[0]["lr"]})
        return found

    def nested_levels(self) -> list[dict[str, Any]]:
        """What `gradatim.probes.nested_levels` shows of this module."""
        return [
            {
                "name": f"memory level {i + 1}",
                "context_flow": f"task gradients of {period} step{'s' if period > 1 else ''}",
                "objective": "task loss",
                "update_rule": f"gradient step, {self.clocks.reduction} over the chunk"
                + (", start meta-learned" if self.kind == "nested" and i + 1 < len(self.levels) else ""),
                "frequency": 1 / period,
                "parameters": list(level.parameters()),
            }
            for i, (level, period) in enumerate(zip(self.levels, self.clocks.periods, strict=True))
        ]

    def extra_repr(self) -> str:
        """Kind and periods."""
        return f"kind={self.kind!r}, periods={self.clocks.periods}, reduction={self.clocks.reduction!r}"
