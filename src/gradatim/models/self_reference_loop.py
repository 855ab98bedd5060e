"""What the tokens of a block write to a self-modifying memory, one after the other, compiled.

The same numbers as the sweeps of `self_reference`: on a processor a compiled loop costs less than sweeping a
block a dozen times. Its derivative runs the loop backwards with the adjoint G_t = dL/dPhi_t:

    Phi_t = a Phi - eta (Phi p) k^T:    dPhi = a G - eta (G k) p^T,  da = <G, Phi>,  deta = -(G k) . (Phi p),
                                        dk = -eta G^T Phi p,         dp = -eta Phi^T G k,
    u_t = Phi_(t-1) x_t:                dPhi += du x^T,              dx = Phi^T du.

Rows are samples times heads and need nothing of each other: they are shared out among PyTorch's threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit
from torch import Tensor

# NaN and infinity keep their meaning: only sums may be taken in another order.
OPTIONS: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"},
}  # fmt: skip
SMALLEST = 1e-12  # added to squared norms, as in `unit`


class Kept:
    """What the way back needs of the way there: u [rows, C, d], and the two scales of `unit` [rows, C, 2]."""

    def __init__(self, addressed: np.ndarray, scales: np.ndarray) -> None:
        self.addressed, self.scales = addressed, scales


def loop_forward(
    value: Tensor, x: Tensor, weights: Tensor, offset: Tensor, delta: bool, unit_values: bool, decay: bool,
    mask: Tensor | None,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Kept]:  # fmt: skip
    """k, v [batch, heads, C, d], eta and log a [batch, heads, C] of a block that starts at Phi = `value`."""
    batch, heads, size, _ = x.shape
    rows = batch * heads
    phi, tokens = _rows(value, rows).copy(), _rows(x, rows)
    keys, values, addressed = (np.empty_like(tokens) for _ in range(3))
    eta, log_decay = (np.empty(tokens.shape[:2], tokens.dtype) for _ in range(2))
    scales = np.empty((rows, size, 2), tokens.dtype)
    there = _present(mask, batch, heads, size)

    def work(first: int, last: int) -> None:
        _forward(
            first, last, phi, tokens, _numpy(weights), _rows(offset, rows), there, delta, unit_values, decay,
            keys, values, eta, log_decay, addressed, scales,
        )  # fmt: skip

    _share_out(work, rows)
    shape = (batch, heads, size)
    found = tuple(torch.from_numpy(t).view(*shape, *t.shape[2:]) for t in (keys, values, eta, log_decay))
    return (found[0], found[1], found[2], found[3]), Kept(addressed, scales)


def loop_adjoint(
    value: Tensor, x: Tensor, weights: Tensor, offset: Tensor, delta: bool, unit_values: bool, decay: bool,
    mask: Tensor | None, z: tuple[Tensor, ...], kept: Kept, gradients: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `value`, x, `weights` and `offset` from those of k, v, eta and log a."""
    batch, heads, size, d = x.shape
    rows = batch * heads
    phi, tokens = _rows(value, rows), _rows(x, rows)
    written = [_rows(t, rows) for t in z]
    given = [_rows(t, rows) for t in gradients]
    d_value, d_tokens = np.empty_like(phi), np.empty_like(tokens)
    d_made = np.empty((rows, size, 2 * d + 2), tokens.dtype)
    there = _present(mask, batch, heads, size)

    def work(first: int, last: int) -> None:
        _adjoint(
            first, last, phi, tokens, _numpy(weights), there, delta, unit_values, decay, *written, *given,
            kept.scales, d_value, d_tokens, d_made,
        )  # fmt: skip

    _share_out(work, rows)
    made = torch.from_numpy(d_made).view(batch, heads, size, -1)
    u = torch.from_numpy(kept.addressed).view(batch, heads, size, d)
    d_weights = torch.einsum("bhtm,bhtd->hmd", made, u)
    return torch.from_numpy(d_value).view_as(value), torch.from_numpy(d_tokens).view_as(x), d_weights, made


def _numpy(t: Tensor) -> np.ndarray:
    found: np.ndarray = t.detach().contiguous().numpy()
    return found


def _rows(t: Tensor, rows: int) -> np.ndarray:
    """[batch, heads, ...] -> [batch * heads, ...]."""
    return _numpy(t).reshape(rows, *t.shape[2:])


def _present(mask: Tensor | None, batch: int, heads: int, size: int) -> np.ndarray:
    """[rows, C], False where a sample has no token."""
    if mask is None:
        return np.ones((batch * heads, size), np.bool_)
    return _numpy(mask.expand(batch, heads, size)).reshape(batch * heads, size)


def _share_out(work: Callable[[int, int], None], rows: int) -> None:
    threads = min(torch.get_num_threads(), rows)
    if threads == 1:
        work(0, rows)
        return
    ends = [rows * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


@njit(**OPTIONS)
@no_type_check  # runtime checkers of annotations would wrap what is to be compiled
def _forward(
    first: int, last: int, phi: Any, x: Any, weights: Any, offset: Any, there: Any, delta: bool,
    unit_values: bool, decay: bool, keys: Any, values: Any, eta: Any, log_decay: Any, addressed: Any,
    scales: Any,
) -> None:  # fmt: skip
    size, d = x.shape[1], x.shape[2]
    made, p = np.empty(2 * d + 2, x.dtype), np.empty(d, x.dtype)
    for r in range(first, last):
        state, layer = phi[r], weights[r % len(weights)]
        for t in range(size):
            token, u, k, v = x[r, t], addressed[r, t], keys[r, t], values[r, t]
            for i in range(d):
                total = x.dtype.type(0)
                for j in range(d):
                    total += state[i, j] * token[j]
                u[i] = total
            for m in range(2 * d + 2):
                total = x.dtype.type(0)
                for j in range(d):
                    total += layer[m, j] * u[j]
                made[m] = total + offset[r, t, m]
            one = two = x.dtype.type(SMALLEST)
            for j in range(d):
                one += made[j] * made[j]
                two += made[d + j] * made[d + j]
            one = x.dtype.type(1) / np.sqrt(one)
            two = x.dtype.type(1) / np.sqrt(two) if unit_values else x.dtype.type(1)
            scales[r, t, 0], scales[r, t, 1] = one, two
            for j in range(d):
                k[j], v[j] = made[j] * one, made[d + j] * two
                p[j] = (k[j] + k[j] if delta else k[j]) - v[j]
            rate, kept = made[2 * d], made[2 * d + 1]
            if there[r, t]:
                eta[r, t] = x.dtype.type(1) / (x.dtype.type(1) + np.exp(-rate))
                # log sigmoid, stable on both sides
                log_decay[r, t] = min(kept, x.dtype.type(0)) - np.log1p(np.exp(-abs(kept))) if decay else 0
            else:
                eta[r, t], log_decay[r, t] = 0, 0
            rate, kept = eta[r, t], np.exp(log_decay[r, t])
            for i in range(d):
                total = x.dtype.type(0)
                for j in range(d):
                    total += state[i, j] * p[j]
                total *= rate
                for j in range(d):
                    state[i, j] = kept * state[i, j] - total * k[j]


@njit(**OPTIONS)
@no_type_check  # runtime checkers of annotations would wrap what is to be compiled
def _adjoint(
    first: int, last: int, phi: Any, x: Any, weights: Any, there: Any, delta: bool, unit_values: bool,
    decay: bool, keys: Any, values: Any, eta: Any, log_decay: Any, d_keys: Any, d_values: Any, d_eta: Any,
    d_log: Any, scales: Any, d_value: Any, d_x: Any, d_made: Any,
) -> None:  # fmt: skip
    size, d = x.shape[1], x.shape[2]
    states, drawn = np.empty((size, d, d), x.dtype), np.empty((size, d), x.dtype)  # Phi, and Phi p
    ps = np.empty((size, d), x.dtype)
    pulled, gk, dp, du = (np.empty(d, x.dtype), np.empty(d, x.dtype), np.empty(d, x.dtype),
                          np.empty(d, x.dtype))  # fmt: skip
    along_k, along_v = np.empty(d, x.dtype), np.empty(d, x.dtype)
    for r in range(first, last):
        layer = weights[r % len(weights)]
        states[0] = phi[r]
        for t in range(size):
            k, v, p = keys[r, t], values[r, t], ps[t]
            rate, kept = eta[r, t], np.exp(log_decay[r, t])
            for j in range(d):
                p[j] = (k[j] + k[j] if delta else k[j]) - v[j]
            for i in range(d):
                total = x.dtype.type(0)
                for j in range(d):
                    total += states[t, i, j] * p[j]
                drawn[t, i] = total
                if t + 1 < size:
                    total *= rate
                    for j in range(d):
                        states[t + 1, i, j] = kept * states[t, i, j] - total * k[j]
        g = d_value[r]
        g[:] = 0
        for t in range(size - 1, -1, -1):
            k, v, p, token, state = keys[r, t], values[r, t], ps[t], x[r, t], states[t]
            rate, kept = eta[r, t], np.exp(log_decay[r, t])
            pulled[:], gk[:], dp[:] = 0, 0, 0
            from_eta, from_log = d_eta[r, t], x.dtype.type(0)
            for i in range(d):
                total = x.dtype.type(0)
                y = drawn[t, i]
                for j in range(d):
                    total += g[i, j] * k[j]
                    pulled[j] += y * g[i, j]
                    from_log += g[i, j] * state[i, j]
                gk[i] = total
                from_eta -= total * y
                for j in range(d):
                    dp[j] += total * state[i, j]
            from_log = from_log * kept + d_log[r, t]
            dot_k = dot_v = x.dtype.type(0)
            for j in range(d):
                slope = -rate * dp[j]
                along_k[j] = d_keys[r, t, j] - rate * pulled[j] + (slope + slope if delta else slope)
                along_v[j] = d_values[r, t, j] - slope
                dot_k += along_k[j] * k[j]
                dot_v += along_v[j] * v[j]
            made = d_made[r, t]
            one, two = scales[r, t, 0], scales[r, t, 1]
            for j in range(d):
                made[j] = (along_k[j] - dot_k * k[j]) * one
                made[d + j] = (along_v[j] - dot_v * v[j]) * two if unit_values else along_v[j]
            made[2 * d] = from_eta * rate * (x.dtype.type(1) - rate) if there[r, t] else 0
            made[2 * d + 1] = from_log * (x.dtype.type(1) - kept) if decay and there[r, t] else 0
            du[:] = 0
            for m in range(2 * d + 2):
                total = made[m]
                for j in range(d):
                    du[j] += total * layer[m, j]
            into = d_x[r, t]
            into[:] = 0
            for i in range(d):
                total, share = rate * gk[i], du[i]
                for j in range(d):
                    into[j] += share * state[i, j]
                    g[i, j] = kept * g[i, j] - total * p[j] + share * token[j]
