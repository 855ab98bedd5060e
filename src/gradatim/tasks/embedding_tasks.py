"""Classification, clustering and similarity as (query, positive, negatives), so that one loss trains all.

    classification   a text, its label's text as the positive, other labels' texts as negatives
    clustering       a text, another text of its cluster, texts of other clusters
    similarity       two texts that score at least a threshold, both ways round

All give columns query, doc_1 ... doc_n, label (1, 0, or -1 for an empty place), as `MultiPositiveRankingLoss`
reads them. Other rows' passages are no safe negatives for the first two (same label, same cluster): train
them with in_batch_negatives=False, which `losses_by_task` in `gradatim.curricula` does.

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438, trains one model on IR and non-IR tasks; the conversion
follows E5-Mistral, 2023, arXiv 2401.00368.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


def classification_rows(
    texts: Sequence[str],
    labels: Sequence[Any],
    label_texts: Mapping[Any, str] | None = None,
    num_negatives: int = 7,
    seed: int = 0,
) -> Dataset:
    """One row per text: its label's text, then up to `num_negatives` other labels' texts.

    `label_texts` says what a label is called (default: the label itself). Raises ValueError for fewer than
    two labels or a label without a text.
    """
    _check(texts, labels, num_negatives)
    kinds = list(dict.fromkeys(labels))
    named = {kind: str(kind) for kind in kinds} if label_texts is None else dict(label_texts)
    lost = next((kind for kind in kinds if kind not in named), None)
    if lost is not None:
        raise ValueError(f"label {lost!r} has no text in label_texts")
    if len(kinds) < 2:
        raise ValueError(f"one label ({kinds[0]!r}) gives no negatives; at least two are needed")
    rng = np.random.default_rng(seed)
    rows = []
    for label in labels:
        others = [kind for kind in kinds if kind != label]
        drawn = rng.permutation(len(others))[:num_negatives]
        rows.append((named[label], [named[others[i]] for i in drawn]))
    return _rows(texts, rows, min(num_negatives, len(kinds) - 1))


def clustering_rows(
    texts: Sequence[str], clusters: Sequence[Any], num_negatives: int = 7, seed: int = 0
) -> Dataset:
    """One row per text whose cluster has another: one of those, then `num_negatives` texts of other clusters.

    Raises ValueError for fewer than two clusters, or when no cluster has two texts.
    """
    _check(texts, clusters, num_negatives)
    members: dict[Any, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    if len(members) < 2 or all(len(own) < 2 for own in members.values()):
        raise ValueError(f"{len(members)} clusters: at least two are needed, and one with two texts")
    rng = np.random.default_rng(seed)
    asked, rows = [], []
    for i, cluster in enumerate(clusters):
        own = [j for j in members[cluster] if j != i and texts[j] != texts[i]]
        if not own:
            continue
        others = np.array([j for j in range(len(texts)) if clusters[j] != cluster])
        drawn = rng.choice(others, size=min(num_negatives, len(others)), replace=False)
        asked.append(texts[i])
        rows.append((texts[own[int(rng.integers(len(own)))]], [texts[j] for j in drawn]))
    return _rows(asked, rows, num_negatives)


def similarity_rows(
    first: Sequence[str],
    second: Sequence[str],
    scores: Sequence[float],
    threshold: float = 4.0,
    num_negatives: int = 7,
    seed: int = 0,
) -> Dataset:
    """Two rows per pair that scores at least `threshold`, one each way; negatives are other pairs' texts.

    Pairs below the threshold supply negatives for each other's partners too, never for their own. Raises
    ValueError for lists of different lengths or no pair above the threshold.
    """
    if not len(first) == len(second) == len(scores):
        raise ValueError(f"{len(first)}, {len(second)} texts and {len(scores)} scores; give equally many")
    similar = [i for i, score in enumerate(scores) if score >= threshold]
    if not similar:
        raise ValueError(
            f"no pair scores at least {threshold}; the highest is {max(scores, default=float('nan'))}"
        )
    rng = np.random.default_rng(seed)
    asked, rows = [], []
    pool = list(dict.fromkeys([*first, *second]))
    near: dict[str, set[str]] = {}
    for i in similar:
        near.setdefault(first[i], set()).add(second[i])
        near.setdefault(second[i], set()).add(first[i])
    for i in similar:
        for query, positive in ((first[i], second[i]), (second[i], first[i])):
            taken = near[query] | {query}
            drawn = [pool[j] for j in rng.permutation(len(pool)) if pool[j] not in taken][:num_negatives]
            asked.append(query)
            rows.append((positive, drawn))
    return _rows(asked, rows, num_negatives)


def _rows(queries: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], negatives: int) -> Dataset:
    from datasets import Dataset

    width = max(1, negatives)
    columns: dict[str, list[Any]] = {"query": list(queries)}
    docs = [[positive, *drawn, *[positive] * (width - len(drawn))] for positive, drawn in rows]
    for j in range(1 + width):
        columns[f"doc_{j + 1}"] = [row[j] for row in docs]
    columns["label"] = [[1, *[0] * len(drawn), *[-1] * (width - len(drawn))] for _, drawn in rows]
    return Dataset.from_dict(columns)


def _check(texts: Sequence[str], labels: Sequence[Any], num_negatives: int) -> None:
    if len(texts) != len(labels) or not len(texts):
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels; give equally many, at least one")
    if num_negatives < 1:
        raise ValueError(f"num_negatives={num_negatives} must be at least 1")
