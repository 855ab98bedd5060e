"""Timing two things fairly on a noisy machine: in turn, in one process, medians and ratios."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def alternate(
    cases: Mapping[str, Callable[[], Any]], repeats: int = 7, warmup: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Run every case in turn, `repeats` times after `warmup` uncounted rounds; seconds per call.

    `clock="cpu"` counts this process's processor time, which a busy neighbour disturbs less.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    gc.freeze()  # else every collection walks all that was ever imported, for longer than a step takes
    try:
        for round_ in range(warmup + repeats):
            for name, run in cases.items():
                gc.collect()
                start = now()
                run()
                elapsed = now() - start
                if round_ >= warmup:
                    seconds[name].append(elapsed)
    finally:
        gc.unfreeze()
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """Median over rounds of peer / ours: above 1 means ours is faster."""
    return statistics.median(p / o for o, p in zip(seconds[ours], seconds[peer], strict=True))


def row(
    case: str, seconds: Mapping[str, Sequence[float]], ours: str, peer: str, target: str
) -> dict[str, Any]:
    """One line of the report: medians in milliseconds, the ratio, and the target it is held to."""
    return {
        "case": case,
        "ours": ours,
        "ours_ms": 1e3 * statistics.median(seconds[ours]),
        "peer": peer,
        "peer_ms": 1e3 * statistics.median(seconds[peer]),
        "ratio": ratio(seconds, ours, peer),
        "target": target,
    }


def report(name: str, what: str, rows: Sequence[Mapping[str, Any]], json_path: str | None = None) -> None:
    """Print the rows; with `json_path` also write them beside the versions they were measured with.

    A row that is no time says in `unit` what its two figures are.
    """
    print(f"\n{name}: {what}")
    print(f"{'case':44s} {'ours':>10s} {'peer':>10s} {'ratio':>7s}  target")
    for r in rows:
        unit = r.get("unit", "ms")
        print(
            f"{r['case'][:44]:44s} {r['ours_ms']:8.2f}{unit} {r['peer_ms']:8.2f}{unit} {r['ratio']:6.2f}x"
            f"  {r['target']}  (beside {r['peer']})"
        )
    if json_path:
        document = {
            "name": name,
            "what": what,
            "rows": list(rows),
            "versions": {p: _version(p) for p in ("torch", "numpy", "scipy", "scikit-learn")},
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        }
        Path(json_path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
