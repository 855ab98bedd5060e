"""Formal languages with a label at every position: what a sequence model must keep in its state to be right.

Parity and five languages that "On the Ability and Limitations of Transformers to Recognize Formal Languages"
(Bhattamishra, Ahuja, Goyal 2020, arXiv 2009.11264) and later work on recurrent models train on: strings of
one range of lengths to learn from, longer ones to judge. A string counts as right if all of its positions
are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class LabelledStrings:
    """Strings of several lengths, padded at the end.

    tokens [n, time] (0 where padded), labels [n, time] (-100 where padded), lengths [n]
    """

    tokens: Int[Tensor, "n time"]
    labels: Int[Tensor, "n time"]
    lengths: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mask(self) -> Bool[Tensor, "n time"]:
        """True where there is a token."""
        return self.labels != IGNORED

    def to(self, device: torch.device | str) -> LabelledStrings:
        """The same strings elsewhere."""
        return LabelledStrings(self.tokens.to(device), self.labels.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class FormalLanguage:
    """A language over `alphabet`, and what each label at a position means.

    `sample(count, (low, high), generator)` draws strings whose lengths are uniform among the lengths from low
    to high that the language has (multiples of `multiple`).
    """

    name: str
    alphabet: tuple[str, ...]
    classes: tuple[str, ...]
    multiple: int
    write: Callable[[Tensor, int, torch.Generator | None], tuple[Tensor, Tensor]]

    def sample(
        self, count: int, lengths: tuple[int, int], generator: torch.Generator | None = None
    ) -> LabelledStrings:
        """Draws `count` strings.

        Raises ValueError where the language has no string of such a length, or for a count below 1.
        """
        low, high = lengths
        first, last = -(-max(low, 1) // self.multiple), high // self.multiple
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if first > last:
            raise ValueError(
                f"{self.name} has no string of {low} to {high} symbols: "
                f"lengths are multiples of {self.multiple}"
            )
        size = torch.randint(first, last + 1, (count,), generator=generator) * self.multiple
        tokens, labels = self.write(size, last * self.multiple, generator)
        absent = torch.arange(tokens.shape[1]) >= size[:, None]
        return LabelledStrings(tokens.masked_fill(absent, 0), labels.masked_fill(absent, IGNORED), size)


def exact(predictions: Int[Tensor, "n time"], strings: LabelledStrings) -> Float[Tensor, " n"]:
    """1 for every string whose labels are all predicted, else 0."""
    wrong = (predictions != strings.labels) & strings.mask
    return (~wrong.any(1)).to(torch.get_default_dtype())


def last_accuracy(
    predictions: Int[Tensor, "n time"], strings: LabelledStrings, positions: int = 8
) -> Float[Tensor, " n"]:
    """Share of right labels among the last `positions` of every string."""
    place = torch.arange(predictions.shape[1], device=predictions.device)
    end = strings.lengths[:, None]
    late = (place < end) & (place >= end - positions)
    right = ((predictions == strings.labels) & late).sum(1)
    return right / late.sum(1)


def _parity(size: Tensor, time: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    bits = torch.randint(0, 2, (len(size), time), generator=generator)
    return bits, bits.cumsum(1) % 2


def _even(size: Tensor, time: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    seen = torch.arange(1, time + 1).expand(len(size), -1)
    return torch.zeros_like(seen), (seen % 2 == 0).long()


def _abab(size: Tensor, time: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    place = torch.arange(time).expand(len(size), -1)
    next_set = torch.tensor([0, 1, 0, 2])  # b; a; b; a or the end
    return place % 2, next_set[place % 4]


def _counted(blocks: int) -> Callable[[Tensor, int, torch.Generator | None], tuple[Tensor, Tensor]]:
    """a^n b^n, a^n b^n c^n: label 0 while a or b may come, j while symbol j must, `blocks` at the end."""

    def write(size: Tensor, time: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        n = (size // blocks)[:, None]
        place = torch.arange(time)
        tokens = (place // n).clamp(max=blocks - 1)
        # After the last a nothing shows that it was the last: only the first b does.
        labels = torch.where(place < n, 0, ((place + 1) // n).clamp(max=blocks))
        return tokens, labels

    return write


def _shuffle_two(size: Tensor, time: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two kinds of brackets, each balanced, freely interleaved: ( 0, ) 1, [ 2, ] 3. Label: which may
    close.
    """
    n = len(size)
    open_ = torch.zeros(n, 2, dtype=torch.long)
    rows = torch.arange(n)
    tokens, labels = torch.zeros(n, time, dtype=torch.long), torch.zeros(n, time, dtype=torch.long)
    for t in range(time):
        left, depth = size - t, open_.sum(1)
        closes = torch.rand(n, generator=generator) < 0.5
        closes = (closes & (depth > 0)) | (depth >= left)
        kind = torch.randint(0, 2, (n,), generator=generator)
        kind = torch.where(closes & (open_[rows, kind] == 0), 1 - kind, kind)
        live = left > 0
        open_[rows, kind] += torch.where(live, torch.where(closes, -1, 1), 0)
        tokens[:, t] = 2 * kind + closes.long()
        labels[:, t] = (open_[:, 0] > 0).long() + 2 * (open_[:, 1] > 0).long()
    return tokens, labels


_ALL = (
    FormalLanguage("parity", ("0", "1"), ("even number of ones", "odd"), 1, _parity),
    FormalLanguage("(aa)*", ("a",), ("odd length", "even length"), 1, _even),
    FormalLanguage("(abab)*", ("a", "b"), ("b", "a", "a or end"), 4, _abab),
    FormalLanguage("a^n b^n", ("a", "b"), ("a or b", "b", "end"), 2, _counted(2)),
    FormalLanguage("a^n b^n c^n", ("a", "b", "c"), ("a or b", "b", "c", "end"), 3, _counted(3)),
    FormalLanguage("shuffle-2", ("(", ")", "[", "]"), ("none", ")", "]", ") or ]"), 2, _shuffle_two),
)
FORMAL_LANGUAGES: Mapping[str, FormalLanguage] = MappingProxyType({found.name: found for found in _ALL})
