"""Reading and refusing the inputs of the attention SVM: tokens, queries, padding, selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class SequenceBatch:
    """Checked inputs as float64 arrays; padded tokens are zero. `device` is where x came from."""

    x: Float[np.ndarray, "n t d"]
    z: Float[np.ndarray, "n e"]
    padding: Bool[np.ndarray, "n t"]
    device: torch.device


def as_array(value: Any) -> np.ndarray:
    """A tensor (any device, bfloat16 included), an array or nested lists, as a NumPy array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
    return np.asarray(value)


def as_floats(name: str, value: Any, ndim: int) -> np.ndarray:
    """A float64 array of `ndim` dimensions, none of them empty.

    Raises:
        TypeError: where it holds no floating-point numbers.
        ValueError: where it has other dimensions.
    """
    array = as_array(value)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name} must hold floating-point numbers, got {array.dtype}; convert it first")
    if array.ndim != ndim or 0 in array.shape:
        raise ValueError(f"{name} must have {ndim} non-empty dimensions, got shape {array.shape}")
    return array.astype(np.float64)


def read_sequences(
    x: Any, z: Any | None, key_padding_mask: Any | None, query_index: int = 0
) -> SequenceBatch:
    """Check shapes, types, devices and values, and fill in z = x[:, query_index] for self-attention.

    Raises:
        TypeError: where x or z holds no floating-point numbers.
        ValueError: on anything else that does not fit.
    """
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    for name, other in (("z", z), ("key_padding_mask", key_padding_mask)):
        if isinstance(other, Tensor) and isinstance(x, Tensor) and other.device != device:
            raise ValueError(f"{name} is on {other.device} and x on {device}; move them together")
    tokens = as_floats("x", x, 3)
    n, t, _ = tokens.shape
    padding = np.zeros((n, t), dtype=bool)
    if key_padding_mask is not None:
        padding = as_array(key_padding_mask)
        if padding.dtype != np.bool_ or padding.shape != (n, t):
            raise ValueError(
                f"key_padding_mask must be bool [{n}, {t}] (True = ignore), "
                f"got {padding.dtype} {padding.shape}"
            )
        if padding.all(axis=1).any():
            raise ValueError(f"sequence {int(padding.all(axis=1).argmax())} has no token that is not padding")
    # What stands in padded places must not matter, not even where it is NaN.
    tokens = np.where(padding[..., None], 0.0, tokens)
    if z is None:
        if not -t <= query_index < t:
            raise ValueError(f"query_index must lie in [-{t}, {t}), got {query_index}")
        if padding[:, query_index].any():
            raise ValueError(f"query_index {query_index} points at padding in some sequences; pass z instead")
        queries = tokens[:, query_index].copy()
    else:
        queries = as_floats("z", z, 2)
        if len(queries) != n:
            raise ValueError(f"x holds {n} sequences but z has {len(queries)} queries; one per sequence")
    for name, array in (("x", tokens), ("z", queries)):
        bad = ~np.isfinite(array).reshape(n, -1).all(axis=1)
        if bad.any():
            raise ValueError(f"{name} holds NaN or infinite values in sequence {int(bad.argmax())}")
    return SequenceBatch(tokens, queries, padding, device)


def read_selection(batch: SequenceBatch, selected: Any) -> Bool[np.ndarray, "n t"]:
    """The selection as a mask, one or more real tokens per sequence.

    Raises:
        ValueError: on a shape, an index or a padded token that does not fit.
    """
    n, t = batch.padding.shape
    if selected is None:
        raise ValueError(f"selected is missing: one token index per sequence, [{n}], or a mask [{n}, {t}]")
    chosen = as_array(selected)
    if chosen.dtype == np.bool_ and chosen.shape == (n, t):
        mask = chosen.copy()
        if not mask.any(axis=1).all():
            raise ValueError(f"sequence {int((~mask.any(axis=1)).argmax())} has no selected token")
    elif np.issubdtype(chosen.dtype, np.integer) and chosen.shape == (n,):
        outside = (chosen < 0) | (chosen >= t)
        if outside.any():
            first = int(outside.argmax())
            raise ValueError(f"selected[{first}] = {chosen[first]} is out of range for {t} tokens")
        mask = np.zeros((n, t), dtype=bool)
        mask[np.arange(n), chosen] = True
    else:
        raise ValueError(
            f"selected must hold integers [{n}] or be a bool mask [{n}, {t}], "
            f"got {chosen.dtype} {chosen.shape}"
        )
    if (mask & batch.padding).any():
        raise ValueError(f"sequence {int((mask & batch.padding).any(axis=1).argmax())} selects padding")
    return mask
