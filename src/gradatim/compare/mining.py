"""Hard negatives for a user's collection, as lines of JSON that any trainer can read.

The encoder's vectors come from the cache on disk (`encode_texts`), a re-ranker's scores from `CachedScores`:
mining again with another margin encodes nothing. Queries that the files keep for testing are left out.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradatim.bench.study import Scale
from gradatim.compare.errors import DataError
from gradatim.compare.retrieval_source import load, unit_rows
from gradatim.curricula import BM25, mine_rows
from gradatim.curricula.cached_scores import CachedScores, weights_digest
from gradatim.curricula.margins import Margin
from gradatim.curricula.mined_rows import MiningReport
from gradatim.models.text_encoder import default_cache, encode_texts
from gradatim.tasks.retrieval import RetrievalTask

MOST_NUMBERS = 500_000_000
"""BM25 as a product of dense matrices: 2 GB at most."""

FORMATS = ("rows", "triplets")


@dataclass(frozen=True)
class Mined:
    """Lines to write, what mining did, how many pairs the re-ranker scored and remembered, and warnings."""

    lines: list[dict[str, Any]]
    report: MiningReport
    asked: int = 0
    remembered: int = 0
    notes: tuple[str, ...] = ()


def mine(
    scale: Scale,
    margin: Margin | None,
    *,
    reranker: str | None = None,
    form: str = "rows",
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    **options: Any,
) -> Mined:
    """Mine with the encoder that the scale names, or with "bm25"; `options` are those of `mine_rows`.

    With `reranker` (a cross-encoder's folder or name) its scores replace the encoder's before the margin.
    Rows: query, positives, negatives, positive_scores, negative_scores (null: filled in at random), as
    `compare retrieval` reads them. Triplets: query, positive, negative and label, the margin of their scores.
    Raises DataError where no query has a passage to learn from, or the collection is too large for BM25 here.
    """
    collection = load(scale)
    task = collection.task
    asked = [query for query in collection.not_for_testing if task.relevant(query)]
    if not asked:
        raise DataError("judges no query that is not for testing", "add qrels/train.tsv", file=scale["data"])
    texts = list(task.corpus.values())
    same: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        same.setdefault(text, []).append(row)
    marked = [[task.corpus[doc] for doc in task.relevant(query)] for query in asked]
    # A passage with the text of a positive is a positive too.
    known = [[row for text in dict.fromkeys(own) for row in same[text]] for own in marked]
    on_progress("encoding", 0, 1)
    of_queries, of_corpus = _vectors(scale, task, asked)
    on_progress("encoding", 1, 1)
    cached = _reranker(reranker, scale)

    def scored(i: int, rows: Sequence[int]) -> Tensor:
        if cached is None:
            return of_corpus[list(rows)] @ of_queries[i]
        return cached.score([task.queries[asked[i]]], [[texts[row] for row in rows]])[0]

    def rescore(begin: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        lowest, each = [], []
        for i, row in enumerate(columns.tolist(), start=begin):
            lowest.append(combined[options.get("several", "min")](scored(i, known[i])))
            each.append(scored(i, row))
            on_progress("re-ranking", i + 1, len(asked))
        return torch.stack(lowest), torch.stack(each)

    combined: Mapping[str, Callable[[Tensor], Tensor]] = {
        "min": torch.amin, "max": torch.amax, "mean": torch.mean
    }  # fmt: skip
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            mined = mine_rows(
                of_queries, of_corpus, known, margin, rescore=None if cached is None else rescore, **options
            )
        lines = [
            line
            for i, query in enumerate(asked)
            for line in _lines(
                form,
                task.queries[query],
                marked[i],
                scored(i, [same[text][0] for text in marked[i]]).tolist(),
                [(texts[row], score) for row, score in _pairs(mined.rows[i], mined.scores[i]) if row >= 0],
            )
        ]
    except ValueError as error:
        fix = "try --several max, another --margin or a larger --range-max"
        raise DataError(str(error).partition("; use")[0], fix, file=scale["data"]) from error
    finally:
        if cached is not None:
            cached.save()
    counts = (0, 0) if cached is None else (cached.asked, cached.remembered)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    return Mined(lines, mined.report, *counts, notes)


def write_lines(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The lines as a JSONL file, which appears whole or not at all."""
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        part.replace(out)
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror})", "give --out another file", file=out
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _vectors(scale: Scale, task: RetrievalTask, asked: Sequence[str]) -> tuple[Tensor, Tensor]:
    queries, texts = [task.queries[query] for query in asked], list(task.corpus.values())
    if scale["model"] != "bm25":
        kind = {"encoder": scale["model"], "max_seq_length": scale["tokens"], "device": scale["device"]}
        found = [torch.from_numpy(unit_rows(encode_texts(part, **kind))) for part in (queries, texts)]
        return found[0], found[1]
    teacher = BM25().fit(texts)
    words = teacher.words_of(queries)
    if (len(queries) + len(texts)) * len(words) > MOST_NUMBERS:
        raise DataError(
            f"has {len(texts)} passages and {len(words)} words in its queries, too many for --model bm25",
            "give --max-rows or --max-queries, or mine with an encoder",
            file=scale["data"],
        )
    return teacher.vectors(queries, texts, words)


def _reranker(name: str | None, scale: Scale) -> CachedScores | None:
    if name is None:
        return None
    from gradatim.inference.search.reranking import CosineRanker, load_reranker

    model = load_reranker(name, scale["device"])
    if isinstance(model, CosineRanker):
        raise DataError("is an encoder, no cross-encoder", "give it as --model", file=name)
    return CachedScores(model, weights_digest(model), default_cache() / "scores")


def _pairs(rows: Tensor, scores: Tensor) -> Iterator[tuple[int, float | None]]:
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        yield row, None if math.isnan(score) else score


def _lines(
    form: str,
    query: str,
    positives: Sequence[str],
    positive_scores: Sequence[float],
    negatives: Sequence[tuple[str, float | None]],
) -> list[dict[str, Any]]:
    distinct: dict[str, float | None] = {}
    for text, score in negatives:
        distinct.setdefault(text, score)
    if form == "rows":
        return [
            {
                "query": query,
                "positives": list(positives),
                "negatives": list(distinct),
                "positive_scores": list(positive_scores),
                "negative_scores": list(distinct.values()),
            }
        ]
    # What was filled in at random has no score of its own, and is no hard negative.
    return [
        {"query": query, "positive": positives[0], "negative": text, "label": positive_scores[0] - score}
        for text, score in distinct.items()
        if score is not None
    ]
