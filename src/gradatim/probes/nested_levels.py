"""Any model and its optimizer as nested learning problems: the lens of "Nested Learning" as a tool.

"Nested Learning" (2025, arXiv 2512.24695) reads a network in training as a set of memories. Each compresses a
flow of context of its own (tokens, gradients ...), by an objective, with an update rule, at a frequency;
those that are updated more often live inside those that are updated less often. Attention is a memory that
takes every token up as it is (frequency without bound), weights are a memory that training writes once per
step, momentum a memory of gradients, frozen weights have frequency 0.

    print(nested_levels(model, optimizer))
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NestedLevel:
    """One learning problem.

    name          what it is
    context_flow  what it sees, one item after the other
    objective     what it makes small or large
    update_rule   how it moves
    frequency     updates per token (inf: takes tokens up without a step, 0: never)
    numbers       how many numbers it holds (0: as many as the context asks for)
    """

    name: str
    context_flow: str
    objective: str
    update_rule: str
    frequency: float
    numbers: int = 0


@dataclass(frozen=True)
class NestedLevels:
    """The levels of a model, most frequent first; prints as a table, `plot(figure)` draws it."""

    levels: tuple[NestedLevel, ...]

    def __str__(self) -> str:
        head = ("level", "context flow", "objective", "update rule", "frequency", "numbers")
        rows = [
            (s.name, s.context_flow, s.objective, s.update_rule, show_frequency(s.frequency),
             f"{s.numbers:,}" if s.numbers else "context")
            for s in self.levels
        ]  # fmt: skip
        columns = list(zip(*[head, *rows], strict=True))
        widths = [min(max(len(cell) for cell in column), 30) for column in columns]

        def lines(row: tuple[str, ...]) -> Iterator[str]:
            cells = [textwrap.wrap(c, w) or [""] for c, w in zip(row, widths, strict=True)]
            for i in range(max(len(c) for c in cells)):
                parts = [(c[i] if i < len(c) else "").ljust(w) for c, w in zip(cells, widths, strict=True)]
                yield "  ".join(parts).rstrip()

        rule = "  ".join("-" * w for w in widths)
        return "\n".join([*lines(head), rule, *(line for row in rows for line in lines(row))])

    def plot(self, figure: Figure) -> None:
        """Levels as nested bars over frequency, slowest outside, on an empty Matplotlib figure."""
        axis = figure.subplots()
        if not self.levels:
            return
        groups = sorted({level.frequency for level in self.levels})
        for row, level in enumerate(self.levels[::-1]):
            place = groups.index(level.frequency)
            # A slower level spans all that is faster than it: those run between two of its updates.
            axis.barh(row, len(groups) - place, left=place, height=0.62, color=f"C{place % 8}", alpha=0.35)
            axis.plot([place], [row], "o", color=f"C{place % 8}", ms=7)
            early = place < len(groups) / 2
            axis.annotate(
                f"{level.name}: {level.update_rule}",
                (place, row),
                xytext=(7 if early else -7, 0),
                textcoords="offset points",
                ha="left" if early else "right",
                va="center",
                fontsize="small",
            )
        axis.set_yticks([])
        axis.set_xticks(range(len(groups)), [show_frequency(f) for f in groups])
        axis.set(xlabel="updates per token", xlim=(-0.4, len(groups)))


def nested_levels(
    model: nn.Module, optimizer: Optimizer | None = None, *, tokens_per_step: int = 1
) -> NestedLevels:
    """Describe a model, and the optimizer that trains it, as nested levels.

    Args:
        model: attention, recurrent cells and normalisation statistics are recognised. A module with a method
            `nested_levels()` describes itself: it returns dicts with the fields of `NestedLevel`; "frequency"
            counts its own steps, which are tokens where the dict says `"per": "token"` and training steps
            otherwise. With "parameters" (a list) the level *is* these parameters, unless the optimizer trains
            them.
        optimizer: its parameter groups, clocks (`MultiFrequency`) and inner memories become levels. Without
            one, parameters are frozen.
        tokens_per_step: tokens that one training step reads (batch times length), which brings clocks inside
            the forward pass and clocks of training onto one axis.

    Raises ValueError for `tokens_per_step` below 1.
    """
    if tokens_per_step < 1:
        raise ValueError(f"tokens_per_step must be at least 1, got {tokens_per_step}")
    step = 1 / tokens_per_step
    trained = {p for g in optimizer.param_groups for p in g["params"]} if optimizer is not None else set()
    found: list[NestedLevel] = []
    told: set[Tensor] = set()
    for module in _parts(model):
        if _describes_itself(module):
            for said in module.nested_levels():  # type: ignore[operator]
                own = set(said.get("parameters", ()))
                if own and own <= trained:
                    continue
                told |= own
                found.append(_level(said, step))
        else:
            found += _from_module(module, step)
    if optimizer is not None:
        found += _from_optimizer(optimizer, step)
    rest = [p for p in model.parameters() if p not in trained and p not in told]
    if rest:
        size = sum(p.numel() for p in rest)
        found.append(
            NestedLevel("frozen parameters", "pre-training data", "pre-training loss", "none", 0.0, size)
        )
    return NestedLevels(tuple(sorted(_merged(found), key=lambda level: -level.frequency)))


def show_frequency(frequency: float) -> str:
    """ "∞", "1", "1/64", "0" ..."""
    if math.isinf(frequency):
        return "∞"
    if 0 < frequency < 1 and abs(1 / frequency - round(1 / frequency)) < 1e-6 / frequency:
        return f"1/{round(1 / frequency)}"
    return f"{frequency:g}"


def _describes_itself(module: nn.Module) -> bool:
    return callable(getattr(module, "nested_levels", None))


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Modules from the outside in; those that describe themselves, and attention, speak for their parts."""
    yield module
    if not (_describes_itself(module) or _is_attention(module)):
        for child in module.children():
            yield from _parts(child)


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return isinstance(module, nn.MultiheadAttention) or name.endswith(("attention", "sdpa", "selfattn"))


def _level(said: Mapping[str, Any], step: float) -> NestedLevel:
    per = 1.0 if said.get("per") == "token" else step
    own = said.get("parameters", ())
    return NestedLevel(
        str(said["name"]),
        str(said["context_flow"]),
        str(said["objective"]),
        str(said["update_rule"]),
        float(said["frequency"]) * per,
        int(said.get("numbers", sum(p.numel() for p in own))),
    )


def _from_module(module: nn.Module, step: float) -> list[NestedLevel]:
    if _is_attention(module):
        return [
            NestedLevel("attention", "tokens of the context (k, v)", "weighted regression of v on k",
                        "keep every pair (no step)", math.inf)
        ]  # fmt: skip
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        kind = type(module).__name__.removesuffix("Cell")
        copies = 2 if kind == "LSTM" else 1
        layers = getattr(module, "num_layers", 1) * (2 if getattr(module, "bidirectional", False) else 1)
        size = copies * layers * module.hidden_size
        objective, rule = "set by training the gates", "learned gated recurrence"
        return [NestedLevel(f"{kind} state", "tokens", objective, rule, 1.0, size)]
    if getattr(module, "running_mean", None) is not None:
        size = sum(b.numel() for b in module.buffers() if b.is_floating_point())
        rule = "moving mean"
        return [NestedLevel("normalisation statistics", "activations", "squared distance", rule, step, size)]
    return []


# What the optimizers of PyTorch and of ours keep: (name, objective, update rule, key in the state).
_Memory = tuple[str, str, str, str]
_MOMENTUM = ("momentum", "dot product with the gradient", "decay, add the gradient", "momentum_buffer")
_ADAM: tuple[_Memory, ...] = (
    ("momentum", "dot product with the gradient", "moving mean of g", "exp_avg"),
    ("second moment", "squared distance to g²", "moving mean of g²", "exp_avg_sq"),
)
_SPECTRAL = "dot product, read through Newton-Schulz"


def _m3(group: Mapping[str, Any]) -> tuple[_Memory, ...]:
    if not group["matrix"]:
        return _ADAM
    return (
        ("fast momentum", _SPECTRAL, "moving mean of g", "fast"),
        ("second moment", "squared distance to g²", "moving mean of g²", "second_moment"),
        ("slow momentum", _SPECTRAL, "moving mean of sums of g", "slow"),
    )


def _deep(group: Mapping[str, Any]) -> tuple[_Memory, ...]:
    objective = f"{group['objective']} on gradient directions"
    return (("deep momentum", objective, "gradient step on its network", "memory_out"),)


_MEMORIES: dict[str, Callable[[Mapping[str, Any]], tuple[_Memory, ...]]] = {
    "SGD": lambda g: (_MOMENTUM,) if g["momentum"] else (),
    "RMSprop": lambda g: (_ADAM[1],),
    "Adam": lambda g: _ADAM,
    "AdamW": lambda g: _ADAM,
    "Muon": lambda g: (("momentum", _SPECTRAL, "moving mean of g", "momentum_buffer"),),
    "DeltaMomentumSGD": lambda g: (
        ("delta momentum", "||m Kᵀ - P||²", "decay, forget along K, add P g", "momentum_buffer"),
    ),
    "DeepMomentumSGD": _deep,
    "M3": _m3,
}


def _from_optimizer(optimizer: Optimizer, step: float) -> list[NestedLevel]:
    inner = getattr(optimizer, "inner", optimizer)
    kind = type(inner).__name__
    found = []
    several = len(optimizer.param_groups) > 1
    for i, group in enumerate(optimizer.param_groups):
        period = group.get("period", 1)
        size = sum(p.numel() for p in group["params"])
        label = f" (group {i + 1})" if several else ""
        flow = "mini-batches" if period == 1 else f"chunks of {period} mini-batches"
        rule = "AdamW" if kind == "M3" and not group["matrix"] else kind
        found.append(NestedLevel(f"parameters{label}", flow, "task loss", rule, step / period, size))
        if period > 1:
            reduction = group.get("reduction", "sum")
            found.append(NestedLevel(f"chunk{label}", "gradients", "dot product", reduction, step, size))
        for name, objective, update, key in _MEMORIES.get(kind, lambda g: ())(group):
            if key == "slow" and not group["slow_weight"]:
                continue
            if key == "second_moment" and not group["second_moment"]:
                continue
            slower = group["slow_period"] if key == "slow" else 1
            held = sum(_held(inner, p, key) for p in group["params"])
            found.append(
                NestedLevel(f"{name}{label}", "gradients", objective, update, step / period / slower, held)
            )
        if kind not in _MEMORIES:
            for key in sorted({k for p in group["params"] for k in inner.state.get(p, {})}):
                held = sum(_held(inner, p, key) for p in group["params"] if key in inner.state.get(p, {}))
                if held > len(group["params"]):
                    found.append(
                        NestedLevel(f"{key}{label}", "gradients", "unknown", kind, step / period, held)
                    )
    return found


def _held(optimizer: Optimizer, p: Tensor, key: str) -> int:
    state = optimizer.state.get(p, {})
    value = state.get(key)
    if key == "memory_out" and "memory_in" in state:
        return int(state["memory_in"].numel() + state[key].numel())
    return int(value.numel()) if isinstance(value, Tensor) else p.numel()


def _merged(levels: Iterable[NestedLevel]) -> list[NestedLevel]:
    """Equal levels of several layers as one, with the number of layers behind the name."""
    counted: dict[tuple[object, ...], list[NestedLevel]] = {}
    for level in levels:
        key = (level.name, level.context_flow, level.objective, level.update_rule, level.frequency)
        counted.setdefault(key, []).append(level)
    return [
        NestedLevel(
            f"{same[0].name} × {len(same)}" if len(same) > 1 else same[0].name,
            same[0].context_flow,
            same[0].objective,
            same[0].update_rule,
            same[0].frequency,
            sum(s.numbers for s in same),
        )
        for same in counted.values()
    ]
