r"""The general equivalence for nonlinear heads: W(k) ~ C(k) W_mm + W_fin.

When training keeps several tokens, their softmax ratios stay finite. From the trained softmax s take the
kept set O_i = {t : s_it >= select}:

    W_fin: least norm with (x_it - x_ir)^T W z_i = ln(s_it / s_ir)   for t, r in O_i,
    W_mm:  least norm with (x_it - x_ir)^T W z_i = 0  for t, r in O_i,  >= 1  for t in O_i, r outside.

Section on nonlinear heads of "Transformers as Support Vector Machines" (2023, arXiv 2308.16898).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.attention_svm import AttentionSVMResult, attention_svm
from gradatim.probes.attention_svm_constraints import selection_constraints
from gradatim.probes.attention_svm_frobenius import least_norm_solution
from gradatim.probes.attention_svm_inputs import as_array, as_floats


@dataclass(frozen=True)
class SVMEquivalence:
    """`direction` W_mm, `finite` W_fin, `scale` R = <W - W_fin, W_mm> / ||W_mm||^2, and
    `predicted` W_fin + R W_mm.

    `ambiguous` is True where some softmax value lies between `ignore` and `select`, or none below `ignore`:
    training has then not decided which tokens it keeps. All weights [d, d].
    """

    direction: Float[Tensor, "d e"]
    finite: Float[Tensor, "d e"]
    scale: float
    predicted: Float[Tensor, "d e"]
    ambiguous: bool
    svm: AttentionSVMResult


def svm_equivalence(
    x: Any, z: Any, attn: Any, weight: Any, *, select: float = 1e-3, ignore: float = 1e-6
) -> SVMEquivalence:
    """Split a trained `weight` [d, d] into its finite and its diverging part.

    `x` [n, t, d], `z` [n, d], `attn` [n, t] the trained softmax. Raises ValueError for bad shapes or
    `ignore >= select`, InfeasibleError where the kept tokens cannot be separated.
    """
    if not 0 < ignore < select < 1:
        raise ValueError(f"need 0 < ignore < select < 1, got ignore={ignore}, select={select}")
    x_, z_ = as_floats("x", x, 3), as_floats("z", z, 2)
    s, w = as_floats("attn", attn, 2), np.asarray(as_array(weight), dtype=np.float64)
    kept = s >= select
    svm = attention_svm(x_, z_, kept)
    problem = selection_constraints(x_, z_, kept, np.zeros(kept.shape, dtype=bool))
    ties = problem.subset(problem.equality)
    anchor = kept.argmax(axis=1)[ties.sequence]
    ratio = np.log(s[ties.sequence, anchor] / s[ties.sequence, ties.token])
    finite, _ = least_norm_solution(replace(ties, target=ratio))
    direction = svm.weight.numpy()
    square = float((direction**2).sum())
    scale = float(((w - finite) * direction).sum() / square) if square else 0.0
    undecided = bool(((s > ignore) & (s < select)).any()) or not bool((s <= ignore).any())
    predicted = torch.from_numpy(finite + scale * direction)
    return SVMEquivalence(svm.weight, torch.from_numpy(finite), scale, predicted, undecided, svm)
