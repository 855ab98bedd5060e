"""How many weights of the attention projections are nearly zero?

Constructions in which attention performs a gradient step need almost all entries of the query and key
matrices to be zero; Shen, Mishra and Khashabi (2023, arXiv 2310.08540) count them in trained models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

THRESHOLDS = (1e2, 1e3, 1e4, 1e5, 1e6)
_NAMES = {
    "query": re.compile(r"(^|\.)(q_proj|query|q|wq)$"),
    "key": re.compile(r"(^|\.)(k_proj|key|k|wk)$"),
    "value": re.compile(r"(^|\.)(v_proj|value|v|wv)$"),
}


def weight_sparsity(model: Any, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, list[float]]:
    """Share of entries with |w| < 1 / threshold in the query, key and value matrices, mean over layers.

    Returns columns "threshold", "query", "key", "value", and "query_std", "key_std", "value_std": shares
    mean little without the scale of the entries. Raises ValueError where no such matrices are found.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[str, list[Tensor]] = {kind: [] for kind in _NAMES}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2:
            continue
        if isinstance(module, Conv1D) and name.endswith("c_attn") and weight.shape[1] == 3 * weight.shape[0]:
            for kind, part in zip(found, weight.detach().chunk(3, dim=1), strict=True):
                found[kind].append(part)
            continue
        for kind, pattern in _NAMES.items():
            if pattern.search(name):
                found[kind].append(weight.detach())
    if not all(found.values()):
        raise ValueError(f"{type(model).__name__} has no separate query, key and value matrices")
    table: dict[str, list[float]] = {"threshold": [float(t) for t in thresholds]}
    for kind, matrices in found.items():
        table[kind] = [
            sum(float((w.abs() < 1 / t).double().mean()) for w in matrices) / len(matrices)
            for t in thresholds
        ]
        spread = sum(float(w.double().std()) for w in matrices) / len(matrices)
        table[f"{kind}_std"] = [spread] * len(thresholds)
    return table
