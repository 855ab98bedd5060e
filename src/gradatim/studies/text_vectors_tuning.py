"""How the recipes of paper 16's codes were chosen: the same number tried for every family, on tuning seeds.

`python -m gradatim.studies.text_vectors_tuning` prints every recipe's mean average precision at 32 bits, the
study's own measure, best first. The study holds the winners.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any

import numpy as np
import torch

from gradatim.bench import Arm, Scale, tuning_seeds
from gradatim.studies.text_vectors_trials import run_trial

SEEDS = 2


def grid(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the choices."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


_BINARY = grid(lr=[0.0025, 0.005, 0.01, 0.025], doc_lr=[1.0, 3.0], sample=[1e-4, 1e-3], min_lr=[1e-5])
_BINARY_FINER = grid(lr=[0.001, 0.0025], doc_lr=[2.0, 3.0, 6.0, 10.0], sample=[3e-5, 1e-4], min_lr=[1e-5])
_REAL = grid(lr=[0.005, 0.01, 0.025, 0.05], sample=[1e-5, 1e-4, 1e-3, 0.0])
_REAL_FINER = grid(lr=[0.005, 0.01], doc_lr=[0.01, 0.02, 0.04, 0.1], sample=[3e-5, 1e-4])
_HASHED = grid(lr=[0.005, 0.01, 0.025, 0.05], real=[32, 100], sample=[1e-4, 1e-3])
_HASHED_FINER = grid(lr=[0.005, 0.01], doc_lr=[0.01, 0.02, 0.04, 0.1], real=[100, 200], sample=[1e-4])

GRIDS: dict[str, list[list[dict[str, Any]]]] = {
    "bpv": [_BINARY, _BINARY_FINER],
    "bpv-smooth": [_BINARY, _BINARY_FINER],
    "real-binary": [
        grid(lr=[0.01, 0.02, 0.04, 0.08], doc_lr=[0.05, 0.2], sample=[1e-4, 1e-3], dropout=[0.1]),
        grid(lr=[0.005, 0.01], doc_lr=[0.0125, 0.025, 0.05, 0.1], sample=[3e-5, 1e-4], dropout=[0.1]),
    ],
    "pv-sign": [_REAL, _REAL_FINER],
    "pv-median": [_REAL, _REAL_FINER],
    "pv-lsh": [_HASHED, _HASHED_FINER],
    "pv-itq": [_HASHED, _HASHED_FINER],
    "pv-cosine": [
        [{**recipe, "real": 100} for recipe in _REAL],
        _HASHED_FINER,
    ],
    "lsa-itq": [
        grid(dim=[32, 64, 128, 256], sublinear_tf=[True, False], use_idf=[True, False]),
        grid(dim=[48, 64, 96, 128], min_df=[2, 4, 10, 20]),
    ],
    "autoencoder": [
        grid(lr=[1e-3, 3e-3], noise=[0.5, 1.0, 2.0, 4.0], words=[1000, 2000], hidden=[256], epochs=[40]),
        grid(lr=[2e-3, 5e-3], noise=[0.7, 1.0], words=[500, 1000], hidden=[128, 256], epochs=[40]),
    ],
}
"""Two rounds of sixteen recipes for each family: a coarse grid, then one around its winner."""


def tried(arm: Arm, scale: Scale, recipes: Iterable[Mapping[str, Any]]) -> list[tuple[float, float, Any]]:
    """(mean average precision, CPU seconds per seed, recipe) of each recipe for an arm, best first."""
    found = []
    for recipe in recipes:
        changed = {**scale, "recipes": {**scale["recipes"], arm.settings["recipe"]: recipe}}
        start, seeds = time.process_time(), tuning_seeds(SEEDS)
        value = float(np.mean([run_trial(arm, seed, changed).metrics["map"] for seed in seeds]))
        found.append((value, (time.process_time() - start) / len(seeds), recipe))
    return sorted(found, key=lambda row: -row[0])


def main(families: Sequence[str] = ()) -> None:
    from gradatim.studies.text_vectors import study

    torch.set_num_threads(1)
    scale = study.profiles["quick"].scale
    arms = {
        a.settings["recipe"]: a
        for a in study.arms
        if a.settings.get("bits", 32) == 32 and "recipe" in a.settings
    }
    for family in families or GRIDS:
        for value, seconds, recipe in tried(arms[family], scale, chain(*GRIDS[family])):
            print(f"{family:12s} MAP {value:.4f}  {seconds:5.1f} s  {recipe}", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
