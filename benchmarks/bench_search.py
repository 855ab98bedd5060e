"""Time of a warm question by method, beside plain bm25s over the same passages; time and size of the index.

    python benchmarks/bench_search.py [--json FILE] [--index INDEX]

The corpus is the docstring pages of the installed packages (`gradatim data export docstring-pages`);
`--packages` takes fewer of them. `--index` takes an index of them all that is there already to be asked;
`--packages` then says what is indexed anew and brought up to date.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import _timing
from search_questions import QUESTIONS

from gradatim.inference.search import FolderIndex, IndexSettings, build_index

TARGET = "200 ms a question"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json")
    parser.add_argument("--index")
    parser.add_argument("--methods", default="bm25,dense,binary")
    parser.add_argument("--packages", nargs="+", default=["numpy", "scipy", "sklearn", "torch"])
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "index"
        rows = _made(Path(scratch), made, options)
        rows += _questions(FolderIndex(options.index or made), options.repeats)
    what = (
        "Questions to the docstring pages, each method warm, in one process; bm25s retrieves from the same"
        " passages, without reading their text, finding places or marking words."
    )
    _timing.report("search", what, rows, options.json)


def _made(scratch: Path, place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the index from nothing, then bring it up to date after one changed file."""
    from gradatim.tasks.docstring_pages import write_docstring_pages

    pages = write_docstring_pages(scratch / "pages", options.packages)
    settings = IndexSettings(methods=tuple(options.methods.split(",")))
    start = time.perf_counter()
    report = build_index(pages, place, settings)
    whole = time.perf_counter() - start
    changed = next(p for p in sorted(pages.rglob("*.txt")))
    changed.write_text(changed.read_text(encoding="utf-8") + "\nOne more line.\n", encoding="utf-8")
    start = time.perf_counter()
    build_index(pages, place, settings)
    update = time.perf_counter() - start
    size = f"{report.passages:,} passages, {report.bytes / 1e6:.0f} MB ({options.methods})"
    return [
        {
            "case": f"update after one changed file: {size}",
            "ours": "update", "ours_ms": 1e3 * update, "peer": "the whole index anew", "peer_ms": 1e3 * whole,
            "ratio": whole / update, "target": "",
        }
    ]  # fmt: skip


def _questions(index: FolderIndex, repeats: int) -> list[dict[str, Any]]:
    import bm25s

    texts = [passage.whole for shard in index._now._local for passage in shard.passages]
    quiet: Any = {"stopwords": "en", "show_progress": False}
    plain = bm25s.BM25(k1=1.4, b=0.4)
    plain.index(bm25s.tokenize(texts, **quiet), show_progress=False)
    asked = {m: cycle([q for q, _ in QUESTIONS]) for m in (*index.methods, "bm25s")}

    def ours(method: str) -> Any:
        return lambda: index.search(next(asked[method]), 10, method)

    def peer() -> Any:
        words = bm25s.tokenize([next(asked["bm25s"])], **quiet)
        return plain.retrieve(words, k=10, show_progress=False)

    cases = {method: ours(method) for method in index.methods}
    seconds = _timing.alternate({**cases, "bm25s": peer}, repeats=repeats, warmup=len(QUESTIONS) // 4)
    return [
        _timing.row(f"{method}: a question, 10 hits of {len(texts):,}", seconds, method, "bm25s", TARGET)
        for method in index.methods
    ]


if __name__ == "__main__":
    main()
