"""A table as the comparisons share it: read once per process, split the same way for every arm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradatim.bench.study import Scale
from gradatim.compare.comparison import content_digest
from gradatim.compare.readers.delimited import DelimitedFile
from gradatim.compare.readers.table import PARQUET_ENDINGS, Kind, TableData, read_table

OUTER_FOLDS = 5


def table_scale(
    data_file: str | Path,
    target: str,
    kind: Kind | Literal["auto"],
    drop: Sequence[str],
    categorical: Sequence[str],
    max_rows: int,
    sample_seed: int,
) -> dict[str, Any]:
    """The options that say which table is read and how, as JSON values."""
    return {
        "data": str(Path(data_file).absolute()),
        "target": target,
        "kind": kind,
        "drop": list(drop),
        "categorical": list(categorical),
        "max_rows": max_rows,
        "sample_seed": sample_seed,
    }


def table_digest(scale: Scale) -> str:
    """A digest of the file's bytes and of how it is read."""
    return content_digest([Path(scale["data"])], {k: v for k, v in scale.items() if k != "data"})


def load(scale: Scale) -> TableData:
    """The table that a scale names, read once per process."""
    return _load(
        scale["data"],
        scale["target"],
        scale["kind"],
        tuple(scale["drop"]),
        tuple(scale["categorical"]),
        scale["max_rows"],
        scale["sample_seed"],
        Path(scale["data"]).stat().st_mtime_ns if Path(scale["data"]).is_file() else 0,
    )


@lru_cache(maxsize=2)
def _load(
    path: str,
    target: str,
    kind: Any,
    drop: tuple[str, ...],
    categorical: tuple[str, ...],
    max_rows: int,
    seed: int,
    changed: int,
) -> TableData:
    return read_table(
        path,
        target,
        kind=kind,
        drop=drop,
        categorical=categorical,
        max_rows=max_rows,
        seed=seed,
        least_per_class=OUTER_FOLDS,
    )


def outer_fold(table: TableData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training and of the test part of a seed."""
    repeat, fold = divmod(seed, OUTER_FOLDS)
    return list(shuffled_folds(table.kind, OUTER_FOLDS, repeat).split(table.features, table.target))[fold]


def shuffled_folds(kind: Kind, folds: int, seed: int) -> Any:
    """A shuffled k-fold splitter, stratified for classes."""
    from sklearn.model_selection import KFold, StratifiedKFold

    split = StratifiedKFold if kind == "classification" else KFold
    return split(folds, shuffle=True, random_state=seed)


def read_code(scale: Scale) -> str:
    """`table = ...` with pandas, for the code that is printed."""
    path = Path(scale["data"])
    if path.suffix.lower() in PARQUET_ENDINGS:
        return f"table = pd.read_parquet({str(path)!r})"
    separator = DelimitedFile(path).delimiter
    extra = "" if separator == "," else f", sep={separator!r}"
    return f'table = pd.read_csv({str(path)!r}, na_values="?"{extra})'
