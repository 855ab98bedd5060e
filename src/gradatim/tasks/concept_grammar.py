"""The probabilistic grammar that concepts are drawn from."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from gradatim.tasks.concepts import AND, MAX_DEPTH, NOT, OR, Concept


class ConceptGrammar:
    """Concepts over `n_features` features, nested `max_depth` operators deep at most.

    sample(d) = a literal if d = max_depth, else with probabilities `probs`: OR, AND (both of two samples of
    d + 1), NOT (of one) or a literal; a literal is one of the features, either polarity, all alike
    likely. This is the grammar of the public code; the paper writes literals without polarity.

    `max_depth=None` sets no bound, and needs probabilities for which formulas end: fewer than one expected
    operand per node.

    Raises ValueError for n_features < 1, max_depth outside 0..30, probabilities that are negative or do not
    sum to 1, and formulas that would not end.
    """

    def __init__(
        self,
        n_features: int,
        max_depth: int | None = 3,
        probs: Sequence[float] = (0.25, 0.25, 0.2, 0.3),
        seed: int = 0,
    ) -> None:
        if n_features < 1:
            raise ValueError(f"n_features must be at least 1, got {n_features}")
        if max_depth is not None and not 0 <= max_depth <= MAX_DEPTH:
            raise ValueError(f"max_depth must be between 0 and {MAX_DEPTH}, or None, got {max_depth}")
        if len(probs) != 4 or min(probs) < 0 or not math.isclose(sum(probs), 1.0, abs_tol=1e-9):
            raise ValueError(f"probs are those of OR, AND, NOT and literal and sum to 1, got {tuple(probs)}")
        operands = 2 * (probs[0] + probs[1]) + probs[2]
        if max_depth is None and operands >= 1:
            raise ValueError(
                f"without a largest depth formulas may never end: {operands:g} expected operands per node, "
                "P(literal) too small; raise it or give max_depth"
            )
        self.n_features, self.max_depth, self.probs = n_features, max_depth, tuple(probs)
        self.seed = seed
        self._random = random.Random(seed)

    def sample(self, source: random.Random | None = None) -> Concept:
        """The next concept of this grammar's own seed, or one drawn from `source`.

        Formulas are not filtered: some hold everywhere or nowhere.
        """
        source = self._random if source is None else source
        uniform = source.random
        least_or, least_and, least_not = (sum(self.probs[: k + 1]) for k in range(3))
        literals = 2 * self.n_features
        bound = math.inf if self.max_depth is None else self.max_depth
        prefix: list[int] = []
        open_at = [0]  # depths of operands still to be drawn
        while open_at:
            depth = open_at.pop()
            u = uniform() if depth < bound else 1.0
            if u < least_and:
                prefix.append(OR if u < least_or else AND)
                open_at += (depth + 1, depth + 1)
            elif u < least_not:
                prefix.append(NOT)
                open_at.append(depth + 1)
            else:
                prefix.append(int(uniform() * literals))
        # Read backwards, prefix is postfix with operands exchanged, which the grammar's symmetry allows.
        return Concept(self.n_features, tuple(reversed(prefix)))

    def __repr__(self) -> str:
        return f"ConceptGrammar({self.n_features}, {self.max_depth}, probs={self.probs}, seed={self.seed})"
