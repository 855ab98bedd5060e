"""Binary paragraph vectors as a search engine: codes find a short list, real vectors order it.

Nothing is learnt from the queries: the passages alone train the codes, as in "Binary Paragraph Vectors",
2017, arXiv 1611.01116.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner
from gradatim.compare.errors import DataError
from gradatim.compare.retrieval_source import load
from gradatim.tasks.retrieval import Run, ranked

if TYPE_CHECKING:
    from gradatim.models import ParagraphVector

BITS = 128
REAL = 100
SHORTLIST = 1000
EPOCHS = 20
KEPT = "gradatim.models.ParagraphVector.load reads it; passages.txt holds the ids of its rows"


def check(scale: Scale) -> None:
    """Raises DataError for passages without two words in common, which leave nothing to learn from."""
    _least_count(scale)


def fit(scale: Scale, seed: int) -> ParagraphVector:
    """Real-Binary codes of the passages: 128 bits on vectors of 100 numbers."""
    from gradatim.models import ParagraphVector

    model = ParagraphVector(
        n_components=BITS,
        binary=True,
        real_dim=REAL,
        epochs=EPOCHS,
        min_count=_least_count(scale),
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a passage without a known word is never near
        return model.fit(list(load(scale).task.corpus.values()))


def rank(model: ParagraphVector, scale: Scale, queries: Sequence[str], k: int) -> Run:
    """The `k` best passages per query: the nearest codes, ordered by the cosine of the real vectors."""
    from gradatim.inference.hamming import HammingIndex

    task = load(scale).task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a query without a known word finds what it finds
        asked = model.transform([task.queries[query] for query in queries])
    index = HammingIndex(model.codes_)
    k = min(k, len(index))
    shortlist = min(SHORTLIST, len(index))
    _, rows = index.query_then_rank(model.codes_of(asked), asked, model.embedding_, k=k, shortlist=shortlist)
    return {
        query: ranked([task.doc_ids[i] for i in row])
        for query, row in zip(queries, rows.tolist(), strict=True)
    }


def save(model: ParagraphVector, scale: Scale, folder: Path) -> None:
    """The model's own files, and the passages' ids in the order of its rows."""
    model.save(folder)
    lines = "".join(doc.replace("\n", " ") + "\n" for doc in load(scale).task.doc_ids)
    (folder / "passages.txt").write_text(lines, encoding="utf-8")


def code(won: Winner, scale: Scale, saved: Path | None) -> str:
    """The lines that search with it."""
    made = (
        [f"model = ParagraphVector.load({str(saved)!r})  # passages.txt there names its rows"]
        if saved is not None
        else [
            f"model = ParagraphVector({BITS}, binary=True, real_dim={REAL}, epochs={EPOCHS}, min_count=1, "
            "random_state=0)",
            "model.fit(passages)",
        ]
    )
    return "\n".join(
        [
            "from gradatim.inference import HammingIndex",
            "from gradatim.models import ParagraphVector",
            "",
            *made,
            "asked = model.transform(queries)",
            "index = HammingIndex(model.codes_)",
            "cosines, rows = index.query_then_rank(model.codes_of(asked), asked, model.embedding_, k=10)",
        ]
    )


def _least_count(scale: Scale) -> int:
    """Words seen once teach nothing in a large corpus; a small one has few others."""
    from collections import Counter

    counts: Counter[str] = Counter()
    for text in load(scale).task.corpus.values():
        counts.update(text.lower().split())
    if len(counts) < 2:
        raise DataError(
            f"its passages hold {len(counts)} different words", "leave out --arm binary", file=scale["data"]
        )
    return 5 if sum(n >= 5 for n in counts.values()) >= 1000 else 1
