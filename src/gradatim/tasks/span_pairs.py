"""What a generator of search keys is trained on: queries and texts, paired with spans of passages.

"Autoregressive Search Engines: Generating Substrings as Document Identifiers" (Bevilacqua et al. 2022,
arXiv 2204.10628). A span of ten words that begins at word i of a passage is drawn for a query with

    p(i) ~ exp( sum over word trigrams t of the query of ratio(t, trigram of the passage at i) / T )

where ratio is the share of characters that two strings have in common in order (1: equal; lower case), and
spans that begin with a stop word are never drawn. Markers tell the model what to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

MARKERS = {"body": "{query} || body || +", "title": "{query} || title || +", "passage": "{query} || p"}
"""Templates of the sources; those of "body" and "title" are what `SEALRetriever` asks with."""

DELIMITER = "@@"


@dataclass(frozen=True)
class Pair:
    """What the model reads, and what it is to write."""

    source: str
    target: str


def span_pairs(
    query: str,
    passage: str,
    n: int = 10,
    length: int = 10,
    temperature: float = 1.0,
    rng: np.random.Generator | None = None,
    *,
    marker: str = MARKERS["body"],
) -> list[Pair]:
    """`n` pairs of the query and a span of `length` words of a passage that answers it, drawn as above.

    A passage of fewer words is its only span. Raises ValueError for a passage without words, numbers below 1
    and a temperature that is not above 0.
    """
    if min(n, length) < 1 or temperature <= 0:
        raise ValueError(
            f"n and length must be at least 1 and temperature above 0, got {n}, {length}, {temperature}"
        )
    words = passage.split()
    p = span_probabilities(query, words, length, temperature)
    draw = np.random.default_rng() if rng is None else rng
    starts = draw.choice(len(p), size=n, p=p)
    source = marker.replace("{query}", query)
    return [Pair(source, " ".join(words[i : i + length])) for i in starts]


def title_pairs(query: str, title: str, copies: int = 3, *, delimiter: str = DELIMITER) -> list[Pair]:
    """`copies` of the pair of the query and the passage's title, closed by the delimiter."""
    return [Pair(MARKERS["title"].replace("{query}", query), f"{title} {delimiter}")] * copies


def unsupervised_pairs(
    passage: str,
    title: str | None = None,
    rng: np.random.Generator | None = None,
    *,
    spans: int = 3,
    length: int = 10,
    lower_case: float = 0.1,
    delimiter: str = DELIMITER,
) -> list[Pair]:
    """Pairs of a passage with itself, which put every passage into the model, with or without questions.

    `spans` times ten random words of it -> another span (not beginning with a stop word or a word that ends a
    sentence); with a title also title <-> span and the whole passage -> title. A share `lower_case` of the
    sources is in lower case. Raises ValueError for a passage without words.
    """
    draw = np.random.default_rng() if rng is None else rng
    words = passage.split()
    starts = np.flatnonzero(allowed_starts(words, length, sentence_ends=True))
    marker = MARKERS["passage"]

    def span() -> str:
        i = int(draw.choice(starts))
        return " ".join(words[i : i + length])

    found = []
    for _ in range(spans):
        chosen = draw.choice(len(words), size=min(length, len(words)), replace=False)
        found.append((" ".join(words[i] for i in chosen), span()))
    if title:
        turned = bool(draw.random() < 0.5)
        found.append((span(), f"{title} {delimiter}") if turned else (title, span()))
        found.append((passage, f"{title} {delimiter}"))
    lowered = draw.random(len(found)) < lower_case
    return [
        Pair(marker.replace("{query}", source.lower() if low else source), target)
        for (source, target), low in zip(found, lowered, strict=True)
    ]


def span_probabilities(
    query: str, words: Sequence[str], length: int, temperature: float
) -> Float[np.ndarray, " starts"]:
    """p(i) of every place where a span of the passage can begin."""
    from rapidfuzz.fuzz import ratio
    from rapidfuzz.process import cdist

    allowed = allowed_starts(words, length)
    asked = _trigrams(query.lower().split())
    there = [" ".join(words[i : i + 3]).lower() for i in range(len(allowed))]
    logits = np.zeros(len(there))
    if asked:
        logits = cdist(asked, there, scorer=ratio).sum(axis=0, dtype=np.float64) / 100 / temperature
    logits[~allowed] = -np.inf
    p = np.exp(logits - logits.max())
    return np.asarray(p / p.sum())


def allowed_starts(words: Sequence[str], length: int, *, sentence_ends: bool = False) -> np.ndarray:
    """Which of the first max(1, words - length + 1) places may begin a span; all of them if none may.

    Raises ValueError for no words.
    """
    if not words:
        raise ValueError("the passage has no words")
    stops = _stop_words()
    starts = words[: max(1, len(words) - length + 1)]
    allowed = np.array([word.lower().strip("\"'(),;:.?!") not in stops for word in starts])
    if sentence_ends:
        allowed &= np.array([not word.endswith((".", "?", "!")) for word in starts])
    return allowed if allowed.any() else np.ones(len(starts), dtype=bool)


class SpanPairs(Dataset[Pair]):
    """Pairs of a retrieval task, drawn anew every epoch: an index is one pair, `set_epoch` changes the draw.

    Supervised: `n` body pairs and, with titles, `title_copies` title pairs for every (query, passage) in
    `relevant`. Unsupervised: `unsupervised_pairs` of every passage in `passages`. A pair depends on the seed,
    the epoch and its own place alone, so that workers and restarts draw the same.

    Args:
        relevant: queries with the name of a passage that answers them.
        passages: texts by name; all of them are learnt unsupervised, if `unsupervised`.
        titles: titles by name.

    Raises KeyError for a relevant passage that is not there, ValueError for no pairs.
    """

    def __init__(
        self,
        relevant: Sequence[tuple[str, str]],
        passages: Mapping[str, str],
        titles: Mapping[str, str] | None = None,
        *,
        n: int = 10,
        length: int = 10,
        temperature: float = 1.0,
        title_copies: int = 3,
        unsupervised: bool = True,
        seed: int = 0,
    ) -> None:
        missing = next((name for _, name in relevant if name not in passages), None)
        if missing is not None:
            raise KeyError(f"relevant names the passage {missing!r}, which is not in passages")
        self.relevant, self.passages, self.titles = list(relevant), passages, titles or {}
        self.n, self.length, self.temperature = n, length, temperature
        self.title_copies, self.seed, self.epoch = title_copies, seed, 0
        names = list(passages) if unsupervised else []
        self._groups: list[tuple[str | None, str]] = [*self.relevant, *((None, name) for name in names)]
        sizes = [self._size(query, name) for query, name in self._groups]
        self._ends = np.cumsum(sizes) if sizes else np.zeros(1, dtype=np.int64)
        if not self._ends[-1]:
            raise ValueError("no pairs: give relevant passages, or unsupervised=True and passages")
        self._drawn: tuple[tuple[int, int], list[Pair]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw other spans from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int) -> Pair:
        if not 0 <= item < len(self):
            raise IndexError(f"pair {item}, but there are {len(self)}")
        group = int(np.searchsorted(self._ends, item, side="right"))
        begin = int(self._ends[group - 1]) if group else 0
        if self._drawn is None or self._drawn[0] != (self.epoch, group):
            self._drawn = (self.epoch, group), self._draw(group)
        return self._drawn[1][item - begin]

    def _size(self, query: str | None, name: str) -> int:
        titled = name in self.titles
        if query is None:
            return 3 + 2 * titled
        return self.n + self.title_copies * titled

    def _draw(self, group: int) -> list[Pair]:
        query, name = self._groups[group]
        rng = np.random.default_rng([self.seed, self.epoch, group])
        passage, title = self.passages[name], self.titles.get(name)
        if query is None:
            return unsupervised_pairs(passage, title, rng, length=self.length)
        pairs = span_pairs(query, passage, self.n, self.length, self.temperature, rng)
        return pairs + (title_pairs(query, title, self.title_copies) if title is not None else [])


@dataclass
class PairCollator:
    """Batches of pairs for a causal or an encoder-decoder model; labels are -100 outside the target.

    Causal: source and target are one sequence and the target alone is learnt. Encoder-decoder: the source is
    `input_ids`, the target `labels`. Targets are encoded as the corpus is, with a blank in front. Sources are
    cut at `max_source` tokens, targets at `max_target`.
    """

    tokenizer: Any
    encoder_decoder: bool = False
    max_source: int = 256
    max_target: int = 64
    pad: int = field(default=0)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        sources = [self._encode(pair.source, special=True)[: self.max_source] for pair in pairs]
        targets = [self._encode(" " + pair.target, special=False)[: self.max_target] for pair in pairs]
        if self.encoder_decoder:
            ids, mask = _padded(sources, self.pad)
            return {"input_ids": ids, "attention_mask": mask, "labels": _padded(targets, -100)[0]}
        ids, mask = _padded([s + t for s, t in zip(sources, targets, strict=True)], self.pad)
        labels = [[-100] * len(s) + t for s, t in zip(sources, targets, strict=True)]
        return {"input_ids": ids, "attention_mask": mask, "labels": _padded(labels, -100)[0]}

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _padded(rows: Sequence[Sequence[int]], value: int) -> tuple[Int[Tensor, "rows longest"], Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def _trigrams(words: Sequence[str]) -> list[str]:
    """Word trigrams; the whole text where it has fewer words."""
    if not words:
        return []
    return [" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def _stop_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(STOPWORDS_EN_PLUS)
