"""How much each layer's representation changes between two sets of weights: before and after adaptation.

Linear CKA (Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited",
2019, arXiv 1905.00414) and representational similarity analysis (Kriegeskorte, Mur and Bandettini, 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """|YᵀX|² / (|XᵀX| |YᵀY|) of centred columns (Frobenius norms): 1 for equal up to rotation and scale.

    NaN where one of them is constant. Raises ValueError for fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"similarity needs at least two rows, got {len(x)}")
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    if len(x) < x.shape[1] + y.shape[1]:
        # The same through the rows' inner products, which are fewer.
        a, b = x @ x.T, y @ y.T
        top, bottom = (a * b).sum(), a.norm() * b.norm()
    else:
        top, bottom = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(top / bottom) if bottom > 0 else float("nan")


def rsa(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """Spearman correlation of the rows' pairwise Euclidean distances in both representations.

    NaN where all distances of one are equal. Raises ValueError for fewer than three rows.
    """
    if len(x) < 3:
        raise ValueError(f"distances correlate from three rows on, got {len(x)}")
    a, b = (torch.pdist(m.double()).cpu().numpy() for m in (x, y))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


@dataclass(frozen=True)
class RepresentationSimilarity:
    """Layer by layer: CKA and RSA of the two representations of the same inputs."""

    layers: tuple[str, ...]
    cka: tuple[float, ...]
    rsa: tuple[float, ...]

    def __str__(self) -> str:
        lines = [f"{'layer':20s} {'CKA':>6s} {'RSA':>6s}"]
        rows = zip(self.layers, self.cka, self.rsa, strict=True)
        return "\n".join(lines + [f"{name:20s} {c:6.3f} {r:6.3f}" for name, c, r in rows])

    def plot(self, axis: Axes) -> None:
        """Both measures over the layers."""
        for name, values, color in (("CKA", self.cka, "C0"), ("RSA", self.rsa, "C1")):
            axis.plot(range(len(values)), values, "o-", color=color, label=name)
        axis.set_xticks(range(len(self.layers)), list(self.layers), rotation=45, ha="right", fontsize="small")
        axis.set(ylabel="similarity before and after", ylim=(None, 1.02))
        axis.legend(fontsize="small")


def representation_similarity(
    module: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    x: Tensor,
    layers: Sequence[str] | None = None,
) -> RepresentationSimilarity:
    """Compare what `module` makes of the rows `x` under two sets of weights.

    `layers` names submodules; None takes every one without children that gives a tensor with a row per input.
    Weights missing from `before` or `after` are the module's own. Neither weights nor buffers change.

    Raises ValueError for a layer that does not exist or is not run.
    """
    states = [representations(module, weights, x, layers) for weights in (before, after)]
    names = tuple(states[0])
    pairs = [(states[0][name], states[1][name]) for name in names]
    return RepresentationSimilarity(
        names, tuple(linear_cka(a, b) for a, b in pairs), tuple(rsa(a, b) for a, b in pairs)
    )


@torch.no_grad()
def representations(
    module: nn.Module, weights: Mapping[str, Tensor], x: Tensor, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The output [n, features] of each layer, in the order in which they run."""
    known = dict(module.named_modules())
    wanted = [n for n, m in known.items() if n and not any(True for _ in m.children())]
    if layers is not None:
        missing = [n for n in layers if n not in known]
        if missing:
            raise ValueError(f"no layer {missing[0]!r}; there are {', '.join(n for n in known if n)}")
        wanted = list(layers)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() >= 2 and len(output) == len(x):
                found[name] = output.detach().flatten(1).clone()

        return hook

    handles = [known[n].register_forward_hook(keep(n)) for n in wanted]  # type: ignore[arg-type]
    buffers = {n: b.clone() for n, b in module.named_buffers()}
    try:
        functional_call(module, {**buffers, **weights}, (x,))
    finally:
        for handle in handles:
            handle.remove()
    lost = [n for n in layers or () if n not in found]
    if lost:
        raise ValueError(f"layer {lost[0]!r} gave no tensor with a row per input")
    return found
