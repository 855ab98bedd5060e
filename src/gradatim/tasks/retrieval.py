"""A retrieval task with graded relevance: the data, its metrics per query, and BM25.

Metrics are computed by pytrec_eval (TREC's own code). A *run* maps a query to its ranked documents with
scores; a document outside the run counts as not retrieved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RetrievalTask:
    """Queries and documents by id, and the relevance grade of documents by query id (0: not relevant).

    Raises ValueError for an empty part and for qrels that name an unknown query or document, or hold a
    grade that is not a whole number of at least 0.
    """

    name: str
    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    qrels: Qrels

    def __post_init__(self) -> None:
        for part in ("queries", "corpus", "qrels"):
            if not getattr(self, part):
                raise ValueError(f"task {self.name!r}: {part} is empty")
        for query, grades in self.qrels.items():
            if query not in self.queries:
                raise ValueError(f"task {self.name!r}: qrels name query {query!r}, not in queries")
            for doc, grade in grades.items():
                if doc not in self.corpus:
                    raise ValueError(
                        f"task {self.name!r}: qrels of query {query!r} name document {doc!r}, not in corpus"
                    )
                if not isinstance(grade, int | np.integer) or grade < 0:
                    raise ValueError(
                        f"task {self.name!r}: grade {grade!r} of ({query!r}, {doc!r}) is no whole number >= 0"
                    )

    @cached_property
    def sha256(self) -> str:
        """Digest of all texts, ids and grades in their order."""
        digest = hashlib.sha256()
        for table in (self.queries, self.corpus):
            for key, text in table.items():
                digest.update(key.encode() + b"\0" + text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        for query, grades in self.qrels.items():
            for doc, grade in grades.items():
                digest.update(f"{query}\0{doc}\0{int(grade)}\0".encode())
        return digest.hexdigest()

    @cached_property
    def doc_ids(self) -> tuple[str, ...]:
        """Document ids in corpus order: position i is row i of any corpus matrix."""
        return tuple(self.corpus)

    def relevant(self, query: str, least_grade: int = 1) -> list[str]:
        """Documents of at least this grade, highest grade first, else in the order of the qrels."""
        grades = self.qrels.get(query, {})
        kept = [doc for doc, grade in grades.items() if grade >= least_grade]
        return sorted(kept, key=lambda doc: -grades[doc])

    def of_queries(self, query_ids: Iterable[str]) -> RetrievalTask:
        """The same corpus with only these queries and their grades."""
        ids = list(query_ids)
        missing = [query for query in ids if query not in self.queries]
        if missing:
            raise ValueError(f"task {self.name!r} has no query {missing[0]!r}")
        return RetrievalTask(
            name=self.name,
            queries={query: self.queries[query] for query in ids},
            corpus=self.corpus,
            qrels={query: self.qrels[query] for query in ids if query in self.qrels},
        )


@dataclass(frozen=True)
class RetrievalScores:
    """Metrics by name, each a value per query in the order of `query_ids`."""

    query_ids: tuple[str, ...]
    per_query: Mapping[str, Float[np.ndarray, " queries"]] = field(repr=False)

    def __getitem__(self, metric: str) -> float:
        """The mean over queries."""
        if metric not in self.per_query:
            raise KeyError(f"{metric!r}; measured: {', '.join(self.per_query)}")
        return float(np.mean(self.per_query[metric]))

    def means(self) -> dict[str, float]:
        return {metric: self[metric] for metric in self.per_query}


def evaluate_run(
    run: Run,
    qrels: Qrels,
    recall_at: Sequence[int] = (10, 100),
    mrr_at: int = 10,
    ndcg_at: int = 10,
    mrr_least_grade: int = 1,
) -> RetrievalScores:
    """`mrr@k`, `ndcg@k` (gain = grade) and `recall@k` of every query in the qrels with a relevant document.

    A document is relevant for recall from grade 1 on and for the reciprocal rank from `mrr_least_grade` on
    (3 asks for the gold passage of the docstring task alone). A query that the run leaves out scores 0.
    Raises ValueError if no query has a relevant document or a cut-off is below 1.
    """
    import pytrec_eval

    if min([*recall_at, mrr_at, ndcg_at]) < 1:
        raise ValueError(
            f"cut-offs must be at least 1, got recall {list(recall_at)}, mrr {mrr_at}, ndcg {ndcg_at}"
        )
    judged = {
        query: {doc: int(grade) for doc, grade in grades.items()}
        for query, grades in qrels.items()
        if any(grade >= 1 for grade in grades.values())
    }
    if not judged:
        raise ValueError("no query has a document of grade 1 or more; nothing to measure")
    measures = {f"ndcg_cut.{ndcg_at}", "recall." + ",".join(str(k) for k in recall_at)}
    present = {query: dict(run[query]) for query in judged if run.get(query)}
    found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(present)
    top = {query: _best(docs, mrr_at) for query, docs in present.items()}
    first = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}, mrr_least_grade).evaluate(top)
    ids = tuple(judged)
    columns = {f"mrr@{mrr_at}": [first.get(q, {}).get("recip_rank", 0.0) for q in ids]}
    columns[f"ndcg@{ndcg_at}"] = [found.get(q, {}).get(f"ndcg_cut_{ndcg_at}", 0.0) for q in ids]
    for k in recall_at:
        columns[f"recall@{k}"] = [found.get(q, {}).get(f"recall_{k}", 0.0) for q in ids]
    return RetrievalScores(ids, {name: np.array(values) for name, values in columns.items()})


def rank_documents(
    similarity: Float[np.ndarray, "queries docs"], k: int
) -> tuple[Int[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """Columns and values of the `k` highest similarities per row, best first, ties by lower column.

    Raises ValueError if a similarity is NaN.
    """
    if np.isnan(similarity).any():
        raise ValueError("similarity holds NaN; check the embeddings")
    k = min(k, similarity.shape[1])
    # Partition first: sorting 8 million columns for 100 of them would dominate everything.
    least = np.partition(similarity, -k, axis=1)[:, -k]
    columns = np.empty((len(similarity), k), dtype=np.int64)
    for i, row in enumerate(similarity):
        above = np.flatnonzero(row > least[i])
        ties = np.flatnonzero(row == least[i])[: k - len(above)]
        chosen = np.sort(np.concatenate([above, ties]))
        columns[i] = chosen[np.argsort(-row[chosen], kind="stable")]
    return columns, np.take_along_axis(similarity, columns, axis=1)


def dense_run(
    query_embeddings: Float[np.ndarray, "queries dim"],
    corpus_embeddings: Float[np.ndarray, "docs dim"],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    k: int = 100,
    chunk: int = 1024,
) -> dict[str, dict[str, float]]:
    """The `k` documents of highest dot product for each query, in blocks of `chunk` queries."""
    run: dict[str, dict[str, float]] = {}
    for begin in range(0, len(query_ids), chunk):
        block = np.asarray(query_embeddings[begin : begin + chunk]) @ np.asarray(corpus_embeddings).T
        columns, _ = rank_documents(block, k)
        for query, row in zip(query_ids[begin : begin + chunk], columns, strict=True):
            run[query] = ranked([doc_ids[column] for column in row])
    return run


def ranked(documents: Sequence[str]) -> dict[str, float]:
    """A run's entry whose scores fall with rank, so that equal similarities keep the order we gave them."""
    return {doc: float(len(documents) - place) for place, doc in enumerate(documents)}


def bm25_run(
    task: RetrievalTask,
    k: int = 100,
    k1: float = 1.4,
    b: float = 0.4,
    query_ids: Iterable[str] | None = None,
    keep_scores: bool = False,
) -> dict[str, dict[str, float]]:
    """The `k` best documents per query by BM25 (Lucene's variant, English stop words, no stemming).

    Scores fall with rank; with `keep_scores` they are BM25's own, for what reads more in them than an order.
    """
    import bm25s

    ids = list(task.queries if query_ids is None else query_ids)
    index = bm25s.BM25(k1=k1, b=b)
    quiet = {"stopwords": "en", "show_progress": False}
    index.index(bm25s.tokenize(list(task.corpus.values()), **quiet), show_progress=False)
    tokens = bm25s.tokenize([task.queries[query] for query in ids], return_ids=False, **quiet)
    run: dict[str, dict[str, float]] = {}
    for query, words in zip(ids, tokens, strict=True):
        known = [word for word in words if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(task.corpus), dtype=np.float32)
        columns, values = rank_documents(scores[None], k)
        found = {task.doc_ids[c]: float(v) for c, v in zip(columns[0], values[0], strict=True) if v > 0}
        run[query] = found if keep_scores else ranked(list(found))
    return run


def pooled_negatives(
    task: RetrievalTask, runs: Iterable[Run], k: int = 20, query_ids: Iterable[str] | None = None
) -> dict[str, list[str]]:
    """Hard negatives: the union of the runs' top `k`, minus every document with a grade of 1 or more."""
    runs = list(runs)
    pools: dict[str, list[str]] = {}
    for query in task.queries if query_ids is None else query_ids:
        relevant = set(task.relevant(query))
        union = dict.fromkeys(doc for run in runs for doc in _best(run.get(query, {}), k))
        pools[query] = [doc for doc in union if doc not in relevant]
    return pools


def _best(docs: Mapping[str, float], k: int) -> dict[str, float]:
    # pytrec_eval breaks ties by document id, descending; cut in the same order.
    kept = sorted(docs, key=lambda doc: (docs[doc], doc), reverse=True)[:k]
    return {doc: docs[doc] for doc in kept}
