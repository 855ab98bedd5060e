"""Boolean concepts as bit sets: what a formula over F features says, exactly.

The concepts of Gupta, "Navigating High Dimensional Concept Space with Metalearning" (2025, arXiv
2508.01948): formulas of AND, OR, NOT and literals. A formula is evaluated on all inputs at once, one big
integer per feature and one bitwise operation per node: counts, equality and hold-outs are exact up to 16
features.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

AND, OR, NOT = -1, -2, -3
MAX_TABLE_FEATURES = 16
FINGERPRINT_BITS = 1 << MAX_TABLE_FEATURES
MAX_DEPTH = 30


@dataclass(frozen=True)
class Concept:
    """A Boolean formula over x1 .. xF.

    `program` is its postfix form: 2i is the literal x_{i+1}, 2i + 1 its negation, and AND, OR, NOT are
    negative codes. `str(concept)` writes it out and `parse_concept` reads it back.

    Raises ValueError for F < 1, a feature beyond F, or a program that is no single formula.
    """

    n_features: int
    program: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ValueError(f"n_features must be at least 1, got {self.n_features}")
        height = 0
        for code in self.program:
            if code >= 2 * self.n_features or code < NOT:
                what = f"feature x{code // 2 + 1}" if code >= 0 else f"operator {code}"
                raise ValueError(f"{what} in a concept of {self.n_features} features")
            height += 1 if code >= 0 else 0 if code == NOT else -1
            if height < 1:
                raise ValueError(f"not a formula: an operator lacks its operands in {self.program}")
        if height != 1:
            raise ValueError(f"not one formula but {height}: {self.program}")

    @property
    def n_literals(self) -> int:
        """Leaves of the formula: its compositional size."""
        return sum(code >= 0 for code in self.program)

    @property
    def depth(self) -> int:
        """Nodes on the longest path from the root to a leaf; a literal has depth 1."""
        stack: list[int] = []
        for code in self.program:
            if code >= 0:
                stack.append(1)
            elif code == NOT:
                stack[-1] += 1
            else:
                right = stack.pop()
                stack[-1] = 1 + max(stack[-1], right)
        return stack[0]

    @property
    def features(self) -> tuple[int, ...]:
        """The features that the formula mentions, from 0."""
        return tuple(sorted({code >> 1 for code in self.program if code >= 0}))

    def evaluate(self, X: Shaped[Tensor, "*rows features"]) -> Bool[Tensor, "*rows"]:
        """Whether the concept holds for each row; a feature is true where its entry is above 0.

        So inputs may be coded {0, 1}, {-1, +1} or as bools. Raises ValueError for another width.
        """
        if X.shape[-1] != self.n_features:
            raise ValueError(f"the concept reads {self.n_features} features, X has {X.shape[-1]}")
        columns = {f: X[..., f] > 0 for f in self.features}
        return self.run(columns, True)

    def run(self, columns: Any, ones: Any) -> Any:
        """The program on one bit set per feature; `ones` is the set of all (True for arrays of bools)."""
        stack: list[Any] = []
        for code in self.program:
            if code >= 0:
                value = columns[code >> 1]
                stack.append(value ^ ones if code & 1 else value)
            elif code == NOT:
                stack[-1] = stack[-1] ^ ones
            else:
                right = stack.pop()
                stack[-1] = stack[-1] & right if code == AND else stack[-1] | right
        return stack[0]

    @functools.cached_property
    def bits(self) -> int:
        """Bit i: the value on input i, whose feature f is bit f of i.

        Beyond 16 features the inputs are 65,536 fixed pseudo-random ones: equal concepts have equal bits
        still, and different ones too only where they differ on less than about one input in 65,536.
        """
        columns, ones = _columns(self.n_features)
        found: int = self.run(columns, ones)
        return found

    @property
    def is_exact(self) -> bool:
        """Whether `bits` holds every input there is."""
        return self.n_features <= MAX_TABLE_FEATURES

    @property
    def density(self) -> float:
        """Share of inputs for which the concept holds; exact up to 16 features, an estimate beyond."""
        return self.bits.bit_count() / table_size(self.n_features)

    def truth_table(self) -> Bool[Tensor, " inputs"]:
        """All 2^F values, input i having feature f = bit f of i. Raises ValueError beyond 16 features."""
        if not self.is_exact:
            raise ValueError(f"a truth table needs at most {MAX_TABLE_FEATURES} features: {self.n_features}")
        return torch.from_numpy(unpack(self.bits, self.n_features))

    def canonical_hash(self) -> str:
        """32 hexadecimal digits, the same for all formulas that say the same (see `bits`)."""
        packed = self.bits.to_bytes(max(1, table_size(self.n_features) // 8), "little")
        return hashlib.blake2b(packed, digest_size=16, key=b"%d" % self.n_features).hexdigest()

    def __str__(self) -> str:
        return _written(self.program)


def table_size(n_features: int) -> int:
    """Bits of `Concept.bits`: 2^F, at most 65,536."""
    return 1 << min(n_features, MAX_TABLE_FEATURES)


def unpack(bits: int, n_features: int) -> np.ndarray:
    """A bit set as an array of bools."""
    size = table_size(n_features)
    packed = np.frombuffer(bits.to_bytes(max(1, size // 8), "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").astype(bool)


def cube(n_features: int) -> Bool[Tensor, "inputs features"]:
    """All 2^F inputs in the order of `truth_table`. Raises ValueError beyond 16 features."""
    if not 1 <= n_features <= MAX_TABLE_FEATURES:
        raise ValueError(f"the cube is written out for 1 to {MAX_TABLE_FEATURES} features, got {n_features}")
    index = torch.arange(1 << n_features)
    return (index[:, None] >> torch.arange(n_features)) & 1 == 1


@functools.lru_cache(maxsize=64)
def _columns(n_features: int) -> tuple[Sequence[int], int]:
    """One bit set per feature over the inputs of `Concept.bits`, and the set of all inputs."""
    size = table_size(n_features)
    ones = (1 << size) - 1
    if n_features <= MAX_TABLE_FEATURES:
        # ones / (2^(2^f) + 1) has runs of 2^f ones, then 2^f zeros; shifted by a run it is column f.
        return [ones // ((1 << (1 << f)) + 1) << (1 << f) for f in range(n_features)], ones
    columns = [
        int.from_bytes(hashlib.shake_256(b"concept feature %d" % f).digest(size // 8), "little")
        for f in range(n_features)
    ]
    return columns, ones


def _written(program: Sequence[int]) -> str:
    """Infix with the fewest brackets that `parse_concept` needs to read the same program back."""
    loose = {AND: 1, OR: 2}  # a right operand of the same operator keeps its brackets
    stack: list[tuple[str, int]] = []
    for code in program:
        if code >= 0:
            stack.append((f"{'~' if code & 1 else ''}x{(code >> 1) + 1}", 0))
        elif code == NOT:
            text, _ = stack.pop()
            # Brackets even around a literal: "~x1" is a literal of its own.
            stack.append((f"~({text})", 0))
        else:
            (left, l), (right, r) = stack[-2], stack[-1]
            del stack[-2:]
            mine = loose[code]
            left = f"({left})" if l > mine else left
            right = f"({right})" if r >= mine else right
            stack.append((f"{left} {'&' if code == AND else '|'} {right}", mine))
    return stack[0][0]
