"""Twenty questions asked of the documentation of the installed packages, by every method of an index.

    python benchmarks/search_questions.py --json results/search-questions.json

Each question names the pages that would answer it, chosen before any search; the script records at which rank
the first of them came back, the first hits, and the time of a warm question. `--index FOLDER` takes an
index of `gradatim data export docstring-pages` that is there already, else one is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradatim.inference.search import FolderIndex, IndexSettings, build_index

# Questions in a user's words, few of them the page's own; pages as patterns, any of which will do.
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("how do I compute the singular value decomposition of a matrix", "*linalg/svd.txt torch/svd.txt"),
    ("solve a system of linear equations", "*linalg/solve.txt *linalg/solve_ex.txt *linalg/lu_solve.txt"),
    (
        "fit a straight line to noisy points",
        "*polyfit.txt */linregress.txt */lstsq.txt */curve_fit.txt */LinearRegression.txt",
    ),
    ("which test tells whether two samples have the same mean", "scipy/stats/ttest_*.txt"),
    (
        "correlation that depends only on the order of the values",
        "*/spearmanr.txt */kendalltau.txt */weightedtau.txt",
    ),
    ("remove a slow drift from a signal", "scipy/signal/detrend.txt"),
    ("smooth a noisy signal but keep its peaks", "scipy/signal/savgol_filter.txt"),
    ("find the local maxima of a one-dimensional array", "*/find_peaks*.txt */argrel*.txt */_peak_finding/*"),
    (
        "shortest path between two nodes of a graph",
        "scipy/sparse/csgraph/*path*.txt *csgraph/dijkstra.txt *csgraph/bellman_ford.txt *csgraph/johnson.txt"
        " *csgraph/floyd_warshall.txt *csgraph/yen.txt",
    ),
    ("integrate a function numerically between two limits", "scipy/integrate/*quad*.txt"),
    (
        "solve a differential equation from a starting value",
        "*/solve_ivp.txt */odeint.txt scipy/integrate/ode.txt *integrate/RK*.txt *integrate/[BDLR]*.txt",
    ),
    (
        "minimize a function whose variables have bounds",
        "*/optimize/minimize.txt */fmin_l_bfgs_b.txt */fmin_tnc.txt */Bounds.txt */optimize/*bounded*.txt"
        " */minimize_scalar.txt */fminbound.txt */optimize/*annealing.txt */differential_evolution.txt"
        " */direct.txt */shgo.txt",
    ),
    (
        "group points into clusters without knowing how many there are",
        "*/DBSCAN.txt */dbscan.txt */HDBSCAN.txt */OPTICS.txt */MeanShift.txt */mean_shift.txt *ffinity*.txt",
    ),
    ("split data into a training and a test set", "*/train_test_split.txt */*ShuffleSplit.txt"),
    ("fill in missing values before training", "sklearn/impute/*.txt"),
    ("turn texts into a matrix of word counts", "*/CountVectorizer.txt */HashingVectorizer.txt */Tfidf*.txt"),
    ("lower the learning rate when the loss no longer improves", "*/ReduceLROnPlateau.txt"),
    ("keep gradients from exploding", "*/clip_grad*.txt */clip_grads*.txt */get_total_norm.txt"),
    ("randomly switch off neurons while training", "torch/nn/*ropout*.txt torch/*dropout*.txt"),
    ("what does the with statement do", "python/with.txt python/context-managers.txt"),
)
SHOWN = 3
LOOKED_AT = 20


def main() -> None:
    """Ask, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--index", help="an index of docstring pages that is there already")
    parser.add_argument("--methods", default="bm25,dense", help="what to index where there is none")
    parser.add_argument("--json", help="file to write the record to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(options.index) if options.index else _made(Path(scratch), options.methods.split(","))
        record = ask(FolderIndex(index))
    for entry in record["questions"]:
        ranks = ", ".join(f"{m} {a['rank'] or '-'}" for m, a in entry["answers"].items())
        print(f"{entry['question'][:62]:62s} {ranks}")
        for method, answer in entry["answers"].items():
            print(f"    {method:7s} {'; '.join(h['file'] for h in answer['hits'])}")
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _made(scratch: Path, methods: list[str]) -> Path:
    from gradatim.tasks.docstring_pages import write_docstring_pages

    pages = write_docstring_pages(scratch / "pages")
    build_index(pages, scratch / "index", IndexSettings(methods=tuple(methods)))
    return scratch / "index"


def ask(index: FolderIndex) -> dict[str, Any]:
    """Every question by every method."""
    entries = []
    for question, pages in QUESTIONS:
        answers = {}
        for way, (method, rerank) in _ways(index).items():
            index.search(question, LOOKED_AT, method, rerank)  # what a first question loads is not counted
            answer = index.search(question, LOOKED_AT, method, rerank)
            rank = next((h.rank for h in answer.hits if _answers(h.file, pages)), None)
            answers[way] = {
                "rank": rank,
                "ms": round(1000 * answer.seconds, 2),
                "hits": [
                    {"file": h.file, "title": h.title, "line": h.line, "good": _answers(h.file, pages)}
                    for h in answer.hits[:SHOWN]
                ],
            }
        entries.append({"question": question, "pages": pages.split(), "answers": answers})
    return {
        "files": index.manifest.files,
        "passages": index.manifest.passages,
        "methods": list(_ways(index)),
        "looked_at": LOOKED_AT,
        "versions": {p: version(p) for p in ("numpy", "scipy", "scikit-learn", "torch")},
        "questions": entries,
    }


def _ways(index: FolderIndex) -> dict[str, tuple[str, str | None]]:
    """Every method; the one that a search takes by itself also re-ranked, if the index has a re-ranker."""
    ways: dict[str, tuple[str, str | None]] = {method: (method, None) for method in index.methods}
    if index.manifest.settings.get("reranker"):
        ways[f"{index.default_method}, re-ranked"] = (index.default_method, "own")
    return ways


def _answers(file: str, pages: str) -> bool:
    return any(fnmatch(file, page) for page in pages.split())


if __name__ == "__main__":
    main()
