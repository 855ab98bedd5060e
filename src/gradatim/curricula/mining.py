"""Hard negatives for training a retriever, less those that are probably right answers.

    dataset = mine_negatives(queries, positives, corpus, model, margin=RelativeMargin(0.95))

Each query's nearest passages by the mining model are its candidates; what is among its positives, or has the
text of one, leaves; what scores closer to the positive than the margin leaves; the rest supplies negatives.

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438; the rules of NV-Retriever, 2024, arXiv 2407.15831.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gradatim.curricula.margins import Margin, RelativeMargin
from gradatim.curricula.mined_rows import MinedRows, MiningReport, Rescore, mine_rows

if TYPE_CHECKING:
    from datasets import Dataset

Output = Literal["n-tuple", "labelled-list"]
Label = Literal["relevance", "scores", "both"]
Texts = Sequence[str] | Mapping[str, str]
Positives = Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]]


@overload
def mine_negatives(
    queries: Texts,
    positives: Positives,
    corpus: Texts,
    model: Any,
    teacher: Any = None,
    margin: Margin | None = ...,
    num_negatives: int = 7,
    range_max: int = 100,
    sampling: str = "top",
    chunk_size: int = 1024,
    seed: int = 0,
    *,
    range_min: int = 0,
    several: str = "min",
    max_positives: int = 4,
    output: str = "n-tuple",
    label: str = "relevance",
    batch_size: int = 32,
    query_prompt: str | None = None,
    corpus_prompt: str | None = None,
    most_emptied: float | int = 0.5,
    return_report: Literal[False] = False,
) -> Dataset: ...
@overload
def mine_negatives(
    queries: Texts,
    positives: Positives,
    corpus: Texts,
    model: Any,
    teacher: Any = None,
    margin: Margin | None = ...,
    num_negatives: int = 7,
    range_max: int = 100,
    sampling: str = "top",
    chunk_size: int = 1024,
    seed: int = 0,
    *,
    range_min: int = 0,
    several: str = "min",
    max_positives: int = 4,
    output: str = "n-tuple",
    label: str = "relevance",
    batch_size: int = 32,
    query_prompt: str | None = None,
    corpus_prompt: str | None = None,
    most_emptied: float | int = 0.5,
    return_report: Literal[True],
) -> tuple[Dataset, MiningReport]: ...
def mine_negatives(
    queries: Texts,
    positives: Positives,
    corpus: Texts,
    model: Any,
    teacher: Any = None,
    margin: Margin | None = RelativeMargin(0.95),  # noqa: B008  (frozen)
    num_negatives: int = 7,
    range_max: int = 100,
    sampling: str = "top",
    chunk_size: int = 1024,
    seed: int = 0,
    *,
    range_min: int = 0,
    several: str = "min",
    max_positives: int = 4,
    output: str = "n-tuple",
    label: str = "relevance",
    batch_size: int = 32,
    query_prompt: str | None = None,
    corpus_prompt: str | None = None,
    most_emptied: float | int = 0.5,
    return_report: bool = False,
) -> Dataset | tuple[Dataset, MiningReport]:
    """A training set of queries, positives and mined negatives, in the order of `queries`.

    Args:
        queries, positives, corpus: texts, with a positive text (or a list of them) per query; or mappings
            from ids, and then `positives` maps query ids to ids of corpus documents. A positive that the
            corpus lacks is added to it.
        model: a `SentenceTransformer` (anything with `encode`, and `encode_query` and `encode_document` where
            it has them); similarity is the cosine.
        teacher: re-scores positives and candidates before the filter: a `CrossEncoder` (`predict`) or
            anything with `score(queries, candidates)`, such as `TeacherEnsemble`. The margin is then in units
            of its scores.
        margin: RelativeMargin, AbsoluteMargin, AdaptiveMargin, or None for none.
        num_negatives: per query. Where fewer are left, random passages fill up; the report counts them.
        range_min, range_max: which of the nearest passages are looked at.
        sampling: the "top" of what passes, or "random" ones of it.
        several: with several positives, whose score the margin counts from: the "min", "mean" or "max".
        max_positives: the first so many positives get a column; the others only count as no negatives.
        output: "n-tuple" has columns query, doc_1 ... doc_n, label, positives first, as
            `MultiPositiveRankingLoss` and `SoftLabelRankingLoss` read it; "labelled-list" has query, docs,
            label, with lists that leave empty places out.
        label: "relevance" is 1 positive, 0 negative, -1 an empty place; "scores" the mining scores (the
            teacher's where there is one); "both" the two lists, scores first.
        query_prompt, corpus_prompt: put before the texts when the mining model encodes them.
        most_emptied: refuse when the margin leaves nothing to more than this share of queries.
        return_report: also return the `MiningReport`.

    Memory is that of the embeddings and of one block of chunk_size x 16,384 similarities.
    Raises ValueError for data and options that cannot be used.
    """
    if output not in get_args(Output):
        raise ValueError(f"output={output!r} is unknown; choose n-tuple or labelled-list")
    if label not in get_args(Label):
        raise ValueError(f"label={label!r} is unknown; choose relevance, scores or both")
    if max_positives < 1:
        raise ValueError(f"max_positives={max_positives} must be at least 1")
    asked, known, texts = _as_rows(queries, positives, corpus)
    of_queries = _encoded(model, asked, "encode_query", query_prompt, batch_size)
    of_corpus = _encoded(model, texts, "encode_document", corpus_prompt, batch_size)
    mined = mine_rows(
        of_queries,
        of_corpus,
        known,
        margin,
        num_negatives,
        range_max,
        range_min,
        sampling,
        several,
        chunk_size,
        seed,
        None if teacher is None else _rescorer(teacher, asked, known, texts, several),
        most_emptied,
    )
    scored = None
    if label != "relevance":
        scored = _row_scores(mined, known, max_positives, of_queries, of_corpus, teacher, asked, texts)
    dataset = _dataset(mined, known, max_positives, asked, texts, output, label, scored)
    return (dataset, mined.report) if return_report else dataset


def _as_rows(
    queries: Texts, positives: Positives, corpus: Texts
) -> tuple[list[str], list[list[int]], list[str]]:
    """Query texts, each one's positive rows, and the corpus with every text once."""
    texts = list(dict.fromkeys(corpus.values() if isinstance(corpus, Mapping) else corpus))
    row = {text: i for i, text in enumerate(texts)}
    if isinstance(queries, Mapping):
        if not isinstance(positives, Mapping) or not isinstance(corpus, Mapping):
            raise ValueError("queries by id need positives by query id and a corpus by document id")
        asked = list(queries.values())
        named: list[list[str]] = []
        for query in queries:
            marked = list(positives.get(query, ()))
            lost = next((doc for doc in marked if doc not in corpus), None)
            if lost is not None:
                raise ValueError(f"positive {lost!r} of query {query!r} is not in the corpus")
            named.append([corpus[doc] for doc in marked])
    else:
        if isinstance(positives, Mapping):
            raise ValueError("positives by query id need queries by id")
        asked = list(queries)
        named = [[p] if isinstance(p, str) else list(p) for p in positives]
    if not asked or not texts:
        raise ValueError(f"{len(asked)} queries and {len(texts)} passages: both need at least one")
    if len(named) != len(asked):
        raise ValueError(f"{len(asked)} queries but {len(named)} entries of positives; give one each")
    # The same question asked twice has the positives of both.
    together: dict[str, dict[str, None]] = {}
    for query, marked in zip(asked, named, strict=True):
        together.setdefault(query, {}).update(dict.fromkeys(marked))
    known: list[list[int]] = []
    for query, marked in zip(asked, named, strict=True):
        rows = []
        for text in dict.fromkeys([*marked, *together[query]]):
            if text not in row:
                row[text] = len(texts)
                texts.append(text)
            rows.append(row[text])
        known.append(rows)
    return asked, known, texts


def _encoded(
    model: Any, texts: Sequence[str], how: str, prompt: str | None, batch_size: int
) -> Float[Tensor, "rows dim"]:
    encode = getattr(model, how, None) or model.encode
    options: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    vectors = encode(list(texts), batch_size=batch_size, show_progress_bar=False, **options)
    tensor = vectors if isinstance(vectors, Tensor) else torch.from_numpy(np.asarray(vectors))
    return F.normalize(tensor.float(), dim=1)


def _rescorer(
    teacher: Any, asked: Sequence[str], known: Sequence[Sequence[int]], texts: Sequence[str], several: str
) -> Rescore:
    combine: dict[str, Callable[[Tensor], Tensor]] = {
        "min": lambda scores: scores.amin(),
        "max": lambda scores: scores.amax(),
        "mean": lambda scores: scores.mean(),
    }

    def rescore(begin: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        positive, candidates = [], []
        for i, row in enumerate(columns.tolist()):
            own = list(known[begin + i])
            # A teacher that standardises per query has to see positives and candidates together.
            both = [*own, *(r for r in row if r not in set(own))]
            given = teacher_scores(teacher, [asked[begin + i]], [[texts[r] for r in both]])[0]
            by_row = dict(zip(both, given.tolist(), strict=True))
            positive.append(combine[several](given[: len(own)]))
            candidates.append([by_row[r] for r in row])
        return torch.stack(positive), torch.tensor(candidates)

    return rescore


def teacher_scores(
    teacher: Any, queries: Sequence[str], candidates: Sequence[Sequence[str]]
) -> Float[Tensor, "queries n"]:
    """Scores by anything with `score(queries, candidates)`, or by a cross-encoder's `predict(pairs)`.

    Every query needs equally many candidates. Raises ValueError for scores of another shape or not finite.
    """
    if hasattr(teacher, "score"):
        found = torch.as_tensor(teacher.score(queries, candidates)).float()
    elif hasattr(teacher, "predict"):
        pairs = [(q, d) for q, docs in zip(queries, candidates, strict=True) for d in docs]
        predicted = teacher.predict(pairs, show_progress_bar=False)
        found = torch.as_tensor(np.asarray(predicted, dtype=np.float32)).reshape(len(queries), -1)
    else:
        raise ValueError(
            f"teacher {type(teacher).__name__} has neither score(queries, candidates) nor predict"
        )
    wanted = (len(queries), len(candidates[0]))
    if tuple(found.shape) != wanted:
        raise ValueError(f"teacher gave scores of shape {tuple(found.shape)}, not {wanted}")
    if not bool(found.isfinite().all()):
        raise ValueError("teacher scores are not finite; check the teacher")
    return found.cpu()


def _row_scores(
    mined: MinedRows,
    known: Sequence[Sequence[int]],
    max_positives: int,
    of_queries: Tensor,
    of_corpus: Tensor,
    teacher: Any,
    asked: Sequence[str],
    texts: Sequence[str],
) -> list[dict[int, float]]:
    """Per query: the score of each of its passages by corpus row."""
    found: list[dict[int, float]] = []
    for i, negatives in enumerate(mined.rows.tolist()):
        rows = [*known[i][:max_positives], *(r for r in negatives if r >= 0)]
        if teacher is None:
            values = (of_corpus[rows] @ of_queries[i]).tolist()
        else:
            values = teacher_scores(teacher, [asked[i]], [[texts[r] for r in rows]])[0].tolist()
        found.append(dict(zip(rows, values, strict=True)))
    return found


def _dataset(
    mined: MinedRows,
    known: Sequence[Sequence[int]],
    max_positives: int,
    asked: Sequence[str],
    texts: Sequence[str],
    output: str,
    label: str,
    scored: Sequence[Mapping[int, float]] | None,
) -> Dataset:
    from datasets import Dataset

    width = min(max_positives, max(len(rows) for rows in known))
    docs: list[list[str]] = []
    labels: list[list[Any]] = []
    for i, negatives in enumerate(mined.rows.tolist()):
        own = list(known[i][:width])
        # An empty place repeats the positive, labelled -1: losses leave it out.
        rows = own + [r if r >= 0 else own[0] for r in negatives]
        relevance = [1] * len(own) + [0 if r >= 0 else -1 for r in negatives]
        values = [0.0] * len(rows) if scored is None else [scored[i][r] for r in rows]
        if output == "labelled-list":
            kept = [j for j, r in enumerate(relevance) if r >= 0]
            rows, relevance = [rows[j] for j in kept], [relevance[j] for j in kept]
            values = [values[j] for j in kept]
        else:
            padding = width - len(own)
            rows, relevance = rows + own[:1] * padding, relevance + [-1] * padding
            values = values + values[:1] * padding
        docs.append([texts[r] for r in rows])
        forms: dict[str, list[Any]] = {
            "relevance": relevance,
            "scores": values,
            "both": [values, relevance],
        }
        labels.append(forms[label])
    columns: dict[str, list[Any]] = {"query": list(asked)}
    if output == "labelled-list":
        columns["docs"] = docs
    else:
        for j in range(len(docs[0])):
            columns[f"doc_{j + 1}"] = [row[j] for row in docs]
    columns["label"] = labels
    return Dataset.from_dict(columns)
