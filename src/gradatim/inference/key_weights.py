"""How much an n-gram says about a query: its probability given the query against its frequency in the corpus.

    P(n) = (F(n) + s) / (N + s)
    w(n, q) = max(0, log [ P(n|q) (1 - P(n)) / (P(n) (1 - P(n|q))) ])

F(n) is the count of n in a corpus of N tokens, s smooths, P(n|q) is the language model's ("Autoregressive
Search Engines", Bevilacqua et al. 2022, arXiv 2204.10628, section 3.3).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_BELOW_ONE = 1e-10


def log_odds(
    log_prob: Float[np.ndarray, " keys"],
    count: Int[np.ndarray, " keys"],
    n_tokens: int,
    smoothing: float = 5.0,
    length: Int[np.ndarray, " keys"] | None = None,
    length_penalty: float = 0.0,
) -> Float[np.ndarray, " keys"]:
    """w(n, q) in nats, at least 0.

    `length_penalty` multiplies log P(n|q) by (1 - length_penalty)^(length - 1); P(n|q) is kept 1e-10 nats
    below 1, where the odds end.
    """
    given = np.minimum(log_prob.astype(np.float64), 0.0) - _BELOW_ONE
    if length_penalty:
        assert length is not None
        given = given * (1.0 - length_penalty) ** (length - 1)
    p = (count + smoothing) / (n_tokens + smoothing)
    with np.errstate(divide="ignore"):
        odds = given - log_one_minus_exp(given) + np.log1p(-np.minimum(p, 1.0)) - np.log(p)
    return np.asarray(np.maximum(odds, 0.0))


def log_one_minus_exp(x: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """log(1 - exp(x)) for x < 0, to full precision at both ends."""
    near = x > -np.log(2)
    return np.where(near, np.log(-np.expm1(np.where(near, x, -1.0))), np.log1p(-np.exp(x)))
