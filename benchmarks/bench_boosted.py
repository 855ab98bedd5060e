"""Boosted networks: fitting beside the reference, beside one MLP of equal units, and switching off.

    python benchmarks/bench_boosted.py --reference DIR      # DIR: a checkout of GAA-UAM/GBNN

Without `--reference` the peer is the same work written here: one MLPRegressor(solver="lbfgs") per block.
The reference's classifier does not run on current scikit-learn, so fits are compared on regression.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

import numpy as np
import torch
from _timing import alternate, report, row
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_regression
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from gradatim.models import BoostedMLPClassifier, BoostedMLPRegressor

# What reference and peer are given, beside the rate and the share of rows that both sides take.
REFERENCE = {"alpha": 1e-4, "max_iter": 200, "tol": 0.0}
SIZES = ((1000, 20, 200), (20_000, 50, 30))


def loop_of_mlps(X, y, units, step, rate=0.1, share=0.5, seed=0):
    """The reference's work without its code: a scikit-learn MLP per block, refitted to what is left."""
    rng = np.random.default_rng(seed)
    F = np.full(len(y), y.mean())
    blocks = []
    for _ in range(units // step):
        rows = rng.permutation(len(y))[: int(share * len(y))]
        block = MLPRegressor(
            hidden_layer_sizes=(step,), activation="logistic", solver="lbfgs",
            random_state=int(rng.integers(1 << 31)), **REFERENCE,
        )  # fmt: skip
        block.fit(X[rows], (y - F)[rows])
        F += rate * block.predict(X)
        blocks.append(block)
    return blocks


def reference_fit(folder):
    """fit(X, y, units, step) of the reference regressor in `folder`, or of the loop above."""
    if folder is None:
        return "an MLPRegressor per block", loop_of_mlps
    sys.path.insert(0, os.path.abspath(folder))
    from gbnn import GNEGNERegressor

    def fit(X, y, units, step):
        model = GNEGNERegressor(
            total_nn=units, num_nn_step=step, eta=0.1, subsample=0.5, random_state=0,
            max_iter=REFERENCE["max_iter"], tol=REFERENCE["tol"],
        )  # fmt: skip
        return model.fit(X, y)

    return "GAA-UAM/GBNN", fit


def fit_rows(folder, repeats):
    name, peer = reference_fit(folder)
    rows = []
    for n, d, units in SIZES:
        X, y = make_regression(n, d, noise=10.0, random_state=0)
        y = (y - y.mean()) / y.std()
        for step in (1, 3):
            total = units // step * step
            ours = BoostedMLPRegressor(total, step, random_state=0)
            same = BoostedMLPRegressor(total, step, random_state=0, **REFERENCE)
            cases = {
                "defaults": lambda m=ours, X=X, y=y: m.fit(X, y),
                "same settings": lambda m=same, X=X, y=y: m.fit(X, y),
                name: lambda X=X, y=y, u=total, s=step: peer(X, y, u, s),
            }
            seconds = alternate(cases, repeats, warmup=0)
            case = f"fit {n} x {d}, {total} units, J={step}"
            rows.append(row(case, seconds, "defaults", name, ">= 3x"))
            # alpha = 1e-4, tol = 0, 200 iterations on both sides: our blocks also end at a lower objective.
            rows.append(row(f"{case}, its settings", seconds, "same settings", name, "-"))
    return rows


def accuracy_rows(repeats):
    """Fit time beside one MLP of equal units and boosted trees, and what each scores on held-out rows."""
    rows = []
    for load in (load_breast_cancer, load_wine, load_digits, load_diabetes):
        X, y = load(return_X_y=True)
        regression = load is load_diabetes
        X, X_test, y, y_test = train_test_split(X, y, random_state=0, stratify=None if regression else y)
        scaler = StandardScaler().fit(X)
        X, X_test = scaler.transform(X), scaler.transform(X_test)
        boosted = BoostedMLPRegressor if regression else BoostedMLPClassifier
        mlp = MLPRegressor if regression else MLPClassifier
        trees = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        settings = {"activation": "logistic", "alpha": 1e-2, "random_state": 0}
        models = {
            "boosted": boosted(200, random_state=0),
            "MLP 200 lbfgs": mlp(hidden_layer_sizes=(200,), solver="lbfgs", max_iter=1000, **settings),
            "MLP 200 adam": mlp(
                hidden_layer_sizes=(200,), learning_rate_init=0.01, max_iter=1000, **settings
            ),
            "HistGB": trees(random_state=0),
        }
        seconds = alternate({k: lambda m=m, X=X, y=y: m.fit(X, y) for k, m in models.items()}, repeats, 0)
        score = {k: m.score(X_test, y_test) for k, m in models.items()}
        for peer in list(models)[1:]:
            line = row(f"fit {load.__name__[5:]} ({score['boosted']:.3f} / {score[peer]:.3f})", seconds,
                       "boosted", peer, "-")  # fmt: skip
            rows.append(line | {"score": score["boosted"], "peer_score": score[peer]})
    return rows


def prediction_rows(repeats):
    """A quarter of the units beside all, and one product beside a predict per stage."""
    rows = []
    rng = np.random.default_rng(0)
    for n, d in ((1000, 20), (20_000, 50)):
        X = rng.standard_normal((n, d))
        y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
        model = BoostedMLPRegressor(200, random_state=0, max_iter=3).fit(X[:1000], y[:1000])
        quarter = model.truncate(50)
        mlp = model.to_mlp()
        # A small table takes a hundred microseconds: several calls per timing.
        calls = max(1, 100_000 // n)

        def several(predict, X=X, calls=calls):
            return lambda: [predict(X) for _ in range(calls)]

        cases = {
            "25% of the units": several(quarter.predict),
            "all units": several(model.predict),
            "MLPRegressor": several(mlp.predict),
        }
        seconds = alternate(cases, repeats)
        rows.append(row(f"predict {n} x {d}", seconds, "25% of the units", "all units", ">= 2x"))
        rows.append(row(f"predict {n} x {d}, all units", seconds, "all units", "MLPRegressor", "-"))
    X, blocks = X[:1000], loop_of_mlps(X[:1000], y[:1000], 50, 1)
    short = BoostedMLPRegressor(50, random_state=0, max_iter=3).fit(X, y[:1000])
    cases = {
        "staged, one product": lambda: list(short.staged_predict(X)),
        "a predict per block": lambda: np.cumsum([b.predict(X) for b in blocks], axis=0),
    }
    seconds = alternate(cases, repeats)
    rows.append(
        row("50 staged outputs, 1000 rows", seconds, "staged, one product", "a predict per block", "-")
    )
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", metavar="DIR", help="a checkout of GAA-UAM/GBNN")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    # The peers warn where they stop at their iteration limit, which is what they are told to do here.
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        rows = fit_rows(args.reference, args.repeats)
        rows += accuracy_rows(args.repeats)
        rows += prediction_rows(args.repeats)
    what = "fit beside the reference, beside one MLP of equal units, prediction with units switched off"
    report("boosted network", what, rows, args.json)


if __name__ == "__main__":
    main()
