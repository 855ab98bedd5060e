"""A continuum memory inside a pretrained network: its MLPs become levels written at several frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from gradatim.models.continuum_memory import MemoryMLP
from gradatim.models.level_clocks import LevelClocks
from gradatim.models.level_writer import LevelWriter

NAMES = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe")


class StackedMLP(nn.Module):
    """A network followed by memory levels that start as the identity."""

    def __init__(self, mlp: nn.Module, extra: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mlp = mlp
        self.extra = nn.ModuleList(extra)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's own answer, passed through the levels."""
        y = self.mlp(x, *args, **kwargs)
        for level in self.extra:
            y = level(y)
        return y


def wrap_mlps(
    model: nn.Module,
    periods: Sequence[int] = (1, 8, 64),
    *,
    placement: Literal["layers", "stacked"] = "layers",
    mlps: Sequence[str] | None = None,
    lr: float | Sequence[float] = 1e-3,
    reduction: Literal["sum", "mean"] = "mean",
    nested: bool = False,
    meta_rate: float = 0.5,
    hidden: int | None = None,
    activation: str = "gelu",
    deferred: bool = False,
) -> LevelWriter:
    """Turn the MLPs of a network (a Hugging Face model, say) into a continuum memory; returns its writer.

        writer = wrap_mlps(model, periods=(1, 4, 16), lr=1e-3)
        loss = model(**batch, labels=batch["input_ids"]).loss
        writer.update(loss)

    The network computes what it computed before; with `lr=0` it stays that. Nothing but the levels is
    written; freeze or train the rest as you like.

    Args:
        model: changed in place only by placement="stacked".
        periods: of the levels.
        placement: "layers" deals the network's own MLPs out to the levels in runs: the first layers are the
            first level. "stacked" keeps each MLP as the first level and puts `len(periods) - 1` memories
            x + W1 sigma(W2 x) with W1 = 0 behind it.
        mlps: names of the MLP modules; by default every module called mlp, feed_forward, ffn or ff inside a
            `nn.ModuleList` of layers.
        hidden: units of stacked memories; their width unless given.
        lr, reduction, nested, meta_rate, deferred: see `LevelClocks` and `LevelWriter`.

    Raises ValueError where no MLP is found, a name does not exist, or there are fewer MLPs than levels.
    """
    found = _find(model) if mlps is None else [_module(model, name) for name in mlps]
    if not found:
        raise ValueError("no MLP found: name them with mlps=[...], see model.named_modules()")
    clocks = LevelClocks.of(periods, lr, reduction=reduction, nested=nested, meta_rate=meta_rate)
    count = len(clocks.periods)
    if placement == "layers":
        if len(found) < count:
            raise ValueError(f"{count} levels need as many MLPs, the network has {len(found)}")
        cuts = [round(i * len(found) / count) for i in range(count + 1)]
        levels = [nn.ModuleList(mlp for _, _, mlp in found[a:b]) for a, b in pairwise(cuts)]
    elif placement == "stacked":
        stacks = []
        for parent, name, mlp in found:
            width = _output_width(mlp)
            extra = [
                MemoryMLP(width, hidden or width, activation, zero=True).to(next(mlp.parameters()))
                for _ in range(count - 1)
            ]
            stacks.append(StackedMLP(mlp, extra))
            setattr(parent, name, stacks[-1])
        levels = [nn.ModuleList(s.mlp for s in stacks)]
        levels += [nn.ModuleList(s.extra[i] for s in stacks) for i in range(count - 1)]
    else:
        raise ValueError(f'placement must be "layers" or "stacked", got {placement!r}')
    return LevelWriter(levels, clocks, deferred=deferred)


def _find(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    layers = [layer for m in model.modules() if isinstance(m, nn.ModuleList) for layer in m]
    return [
        (layer, name, child) for layer in layers for name, child in layer.named_children() if name in NAMES
    ]


def _module(model: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    parent, _, name = path.rpartition(".")
    try:
        return model.get_submodule(parent), name, model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the network has no module {path!r}") from error


def _output_width(mlp: nn.Module) -> int:
    """Rows of the last linear map (`nn.Linear`, or GPT-2's transposed Conv1D)."""
    for module in reversed(list(mlp.modules())):
        if isinstance(module, nn.Linear):
            return module.out_features
        if hasattr(module, "nf"):
            return int(getattr(module, "nf"))  # noqa: B009
    raise ValueError(f"cannot tell the output width of {type(mlp).__name__}: it has no linear map")
