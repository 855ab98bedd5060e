"""Teachers that grade passages for a student: BM25, a dense retriever and re-rankers, in one score.

    T(q, d) = sum over teachers of a_i norm(score_i(q, d))

where norm puts each teacher's scores of one query on a common scale: "zscore" (mean 0, deviation 1), "minmax"
([0, 1]) or "rank" (1 for the best, 0 for the last, ties share).

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438, distils a retriever and a re-ranker. How it fuses them
is not public; standardising per query and the weights here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from gradatim.curricula.mining import teacher_scores

if TYPE_CHECKING:
    from datasets import Dataset
    from scipy.sparse import csr_array

Normalize = Literal["zscore", "minmax", "rank"]


class BM25:
    """BM25 (Lucene's variant, English stop words) as a teacher.

    `fit(corpus)` sets the document frequencies; without it every call takes those of the passages it scores.
    """

    def __init__(self, k1: float = 1.4, b: float = 0.4) -> None:
        self.k1, self.b = k1, b
        self._place: dict[str, int] | None = None

    def fit(self, corpus: Sequence[str]) -> BM25:
        """Document frequencies and mean length of this corpus."""
        docs = list(dict.fromkeys(corpus))
        self._place = {text: i for i, text in enumerate(docs)}
        self._index(docs)
        return self

    def matrix(self, queries: Sequence[str], corpus: Sequence[str]) -> Float[Tensor, "queries docs"]:
        """Scores of every query and passage: one sparse times sparse product."""
        docs = list(dict.fromkeys(corpus))
        weights, vocabulary = self._weights(docs)
        counts = self._counts(queries, vocabulary, weights.shape[1])
        scores = torch.from_numpy((counts @ weights.T).toarray().astype(np.float32))
        place = {text: i for i, text in enumerate(docs)}
        return scores[:, [place[text] for text in corpus]]

    def pairs(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Float[Tensor, "queries n"]:
        """Scores of each query's own candidates."""
        docs = list(dict.fromkeys(text for row in candidates for text in row))
        place = {text: i for i, text in enumerate(docs)}
        weights, vocabulary = self._weights(docs)
        counts = self._counts(queries, vocabulary, weights.shape[1])
        rows = [
            (weights[[place[text] for text in row]] @ counts[[i]].T).toarray()[:, 0]
            for i, row in enumerate(candidates)
        ]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def words_of(self, queries: Sequence[str]) -> list[str]:
        """The words of these queries that the fitted corpus has."""
        known = self._fitted[1]
        return sorted(
            {word for row in _tokens(list(queries), as_words=True) for word in row if word in known}
        )

    def vectors(
        self, queries: Sequence[str], corpus: Sequence[str], words: Sequence[str]
    ) -> tuple[Float[Tensor, "queries words"], Float[Tensor, "docs words"]]:
        """Dense vectors over `words` (those of the queries) whose dot products are the scores."""
        weights, vocabulary = self._weights(list(corpus))
        columns = [vocabulary[word] for word in words]
        counts = self._counts(queries, vocabulary, weights.shape[1])
        return tuple(  # type: ignore[return-value]
            torch.from_numpy(part[:, columns].toarray().astype(np.float32)) for part in (counts, weights)
        )

    def _weights(self, docs: list[str]) -> tuple[csr_array, dict[str, int]]:
        """Each passage's weight of each term [docs, terms]."""
        place = self._place
        if place is None:
            return self._index(docs)
        index, vocabulary = self._fitted
        lost = next((text for text in docs if text not in place), None)
        if lost is not None:
            raise ValueError(f"BM25 was fitted on a corpus without {lost[:60]!r}; fit it on all passages")
        return index[[place[text] for text in docs]], vocabulary

    def _index(self, docs: list[str]) -> tuple[csr_array, dict[str, int]]:
        import bm25s
        from scipy.sparse import csc_array

        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(_tokens(docs), show_progress=False)
        parts = index.scores
        shape = (len(docs), len(parts["indptr"]) - 1)
        weights = csc_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape).tocsr()
        self._fitted = (weights, index.vocab_dict)
        return self._fitted

    def _counts(self, queries: Sequence[str], vocabulary: dict[str, int], terms: int) -> csr_array:
        from scipy.sparse import csr_array

        words = _tokens(list(queries), as_words=True)
        found = [(i, vocabulary[w]) for i, row in enumerate(words) for w in row if w in vocabulary]
        where = np.array(found, dtype=np.int64).reshape(-1, 2)
        ones = np.ones(len(where), dtype=np.float32)
        return csr_array((ones, (where[:, 0], where[:, 1])), shape=(len(queries), terms))


def _tokens(texts: list[str], as_words: bool = False) -> Any:
    import bm25s

    return bm25s.tokenize(texts, stopwords="en", show_progress=False, return_ids=not as_words)


class Dense:
    """Cosines of a `SentenceTransformer` as a teacher; texts are encoded once and remembered."""

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        self._known: dict[tuple[str, str], Tensor] = {}

    def matrix(self, queries: Sequence[str], corpus: Sequence[str]) -> Float[Tensor, "queries docs"]:
        """Cosines of every query and passage."""
        return self._vectors(queries, "encode_query") @ self._vectors(corpus, "encode_document").T

    def pairs(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Float[Tensor, "queries n"]:
        """Cosines of each query and its own candidates."""
        of_queries = self._vectors(queries, "encode_query")
        flat = self._vectors([text for row in candidates for text in row], "encode_document")
        return torch.einsum("qd,qnd->qn", of_queries, flat.reshape(len(of_queries), -1, flat.shape[1]))

    def _vectors(self, texts: Sequence[str], how: str) -> Float[Tensor, "rows dim"]:
        fresh = [text for text in dict.fromkeys(texts) if (how, text) not in self._known]
        if fresh:
            encode = getattr(self.model, how, None) or self.model.encode
            vectors = encode(fresh, batch_size=self.batch_size, show_progress_bar=False)
            found = F.normalize(torch.as_tensor(np.asarray(vectors, dtype=np.float32)), dim=1)
            self._known.update({(how, text): row for text, row in zip(fresh, found, strict=True)})
        return torch.stack([self._known[how, text] for text in texts])


class TeacherEnsemble:
    """Several teachers as one.

    Args:
        retrievers: objects with `matrix(queries, corpus)` and `pairs(queries, candidates)`, as `BM25` and
            `Dense` have; a bare `SentenceTransformer` is wrapped in `Dense`.
        rerankers: cross-encoders (`predict(pairs)`), or objects with `score(queries, candidates)`.
        weights: one per teacher, retrievers first. Default: (0.5, 0.5) for two retrievers, (0.2, 0.3, 0.5)
            with one re-ranker, equal weights otherwise.
        normalize: "zscore", "minmax" or "rank", per query over what is scored together.

    Raises ValueError for no teacher, weights of another number or not finite, an unknown `normalize`.
    """

    def __init__(
        self,
        retrievers: Sequence[Any] = (),
        rerankers: Sequence[Any] = (),
        weights: Sequence[float | int] | None = None,
        normalize: str = "zscore",
    ) -> None:
        self.retrievers = [r if hasattr(r, "pairs") else Dense(r) for r in retrievers]
        self.rerankers = list(rerankers)
        count = len(self.retrievers) + len(self.rerankers)
        if not count:
            raise ValueError("an ensemble needs at least one retriever or re-ranker")
        if normalize not in get_args(Normalize):
            raise ValueError(f"normalize={normalize!r} is unknown; choose zscore, minmax or rank")
        self.normalize = normalize
        self.weights = _weights(weights, len(self.retrievers), len(self.rerankers))

    def fit(self, corpus: Sequence[str]) -> TeacherEnsemble:
        """Gives the retrievers that count words the corpus to count."""
        for retriever in self.retrievers:
            if hasattr(retriever, "fit"):
                retriever.fit(corpus)
        return self

    def score(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Float[Tensor, "queries n"]:
        """T of each query and its own candidates, standardised over these candidates.

        Raises ValueError for queries with different numbers of candidates, and for scores that are not
        finite.
        """
        return self._fused(queries, candidates, None)

    def matrix(self, queries: Sequence[str], corpus: Sequence[str]) -> Float[Tensor, "queries docs"]:
        """T of every query and passage, standardised over the whole corpus. Raises ValueError with
        re-rankers: they would read every pair."""
        if self.rerankers:
            raise ValueError(
                "re-rankers score candidates, not a whole corpus; use score(queries, candidates)"
            )
        parts = [retriever.matrix(queries, corpus) for retriever in self.retrievers]
        return self._sum(parts, torch.ones_like(parts[0], dtype=torch.bool))

    def annotate(self, dataset: Dataset, keep_labels: bool = False) -> Dataset:
        """The dataset (query, doc_1 ... doc_n) with T of each row's passages as its list column `label`.

        Places labelled -1 are left out of the standardisation and score 0. `keep_labels` keeps the labels
        beside the scores, as [scores, labels], which `SoftLabelRankingLoss(hard_targets="mask")` reads.
        """
        names = [name for name in dataset.column_names if name not in ("label", "labels")]
        if len(names) < 3:
            raise ValueError(f"columns {names}: a query and at least two passages are needed")
        had = dataset["label"] if "label" in dataset.column_names else None
        if keep_labels and had is None:
            raise ValueError("keep_labels=True needs a column 'label' of 1, 0 and -1")
        columns = [list(dataset[name]) for name in names]
        candidates = [list(row) for row in zip(*columns[1:], strict=True)]
        present = None
        if had is not None:
            present = torch.tensor([list(row) for row in had]) != -1
            if present.shape != (len(candidates), len(names) - 1):
                raise ValueError(
                    f"labels of shape {tuple(present.shape)} for {len(names) - 1} passages per row"
                )
        scores = self._fused(columns[0], candidates, present).tolist()
        labels = scores
        if keep_labels and had is not None:
            labels = [[s, list(row)] for s, row in zip(scores, had, strict=True)]
        columns_by_name = dict(zip(names, columns, strict=True))
        return type(dataset).from_dict({**columns_by_name, "label": labels})

    def _fused(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        present: Bool[Tensor, "queries n"] | None,
    ) -> Float[Tensor, "queries n"]:
        widths = {len(row) for row in candidates}
        if len(candidates) != len(queries) or len(widths) != 1:
            raise ValueError(
                f"{len(queries)} queries with candidate lists of lengths {sorted(widths)}: give every query "
                "as many"
            )
        parts = [retriever.pairs(queries, candidates) for retriever in self.retrievers]
        parts += [teacher_scores(reranker, queries, candidates) for reranker in self.rerankers]
        if present is None:
            present = torch.ones_like(parts[0], dtype=torch.bool)
        return self._sum(parts, present)

    def _sum(
        self, parts: Sequence[Float[Tensor, "queries n"]], present: Bool[Tensor, "queries n"]
    ) -> Float[Tensor, "queries n"]:
        total = torch.zeros_like(parts[0], dtype=torch.float32)
        for weight, part in zip(self.weights, parts, strict=True):
            if not bool(part.isfinite().all()):
                raise ValueError("a teacher's scores are not finite; check it")
            total += weight * normalized(part.float().cpu(), self.normalize, present)
        return total


def normalized(
    scores: Float[Tensor, "queries n"], how: str, present: Bool[Tensor, "queries n"] | None = None
) -> Float[Tensor, "queries n"]:
    """Each row on a common scale; places not present take no part and become 0. A constant row becomes 0."""
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    count = present.sum(dim=1, keepdim=True).clamp(min=1)
    if how == "zscore":
        mean = scores.masked_fill(~present, 0.0).sum(dim=1, keepdim=True) / count
        centred = (scores - mean).masked_fill(~present, 0.0)
        deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
        # Equal scores differ in their last bits after the mean is taken off.
        flat = deviation <= 1e-6 * scores.abs().amax(dim=1, keepdim=True)
        return torch.where(flat, 0.0, centred / deviation.masked_fill(flat, 1.0))
    if how == "minmax":
        low = scores.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
        high = scores.masked_fill(~present, -torch.inf).amax(dim=1, keepdim=True)
        span = (high - low).nan_to_num(0.0)
        scaled = (scores - low) / torch.where(span > 0, span, 1.0)
        return scaled.masked_fill(~present | (span <= 0), 0.0)
    from scipy.stats import rankdata

    ranks = rankdata(scores.masked_fill(~present, -torch.inf).double().numpy(), axis=1)
    absent = (~present).sum(dim=1, keepdim=True)
    below = torch.from_numpy(ranks).float() - 1 - absent
    return (below / (count - 1).clamp(min=1)).masked_fill(~present | (count == 1), 0.0)


def _weights(given: Sequence[float | int] | None, retrievers: int, rerankers: int) -> tuple[float, ...]:
    count = retrievers + rerankers
    if given is None:
        usual = {(2, 0): (0.5, 0.5), (2, 1): (0.2, 0.3, 0.5)}
        return usual.get((retrievers, rerankers), (1 / count,) * count)
    weights = tuple(float(w) for w in given)
    if len(weights) != count or not np.isfinite(weights).all():
        raise ValueError(f"weights={list(given)}: give {count} finite numbers, retrievers first")
    return weights
