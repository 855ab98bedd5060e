"""The tabular arms as scikit-learn pipelines, and the grids they search.

Preprocessing is part of every pipeline, so that it is fitted inside each fold:

- numeric columns: missing values become the median, with a 0/1 column beside it where some were missing;
  then mean 0 and deviation 1
- categorical columns: one 0/1 column for each of the 32 most frequent values (missing is a value of its
  own), one for all others; values never seen in training count as the others
- histogram gradient boosting takes numeric columns as they are, NaN included, and categorical columns as
  codes that it splits as sets

Every grid has six points (the constant has none): no arm wins by a longer search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradatim.bench.study import Arm

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("boosted-network", label="boosted network"),
        Arm("mlp", label="scikit-learn MLP", role="baseline"),
        Arm("hist-gradient-boosting", label="histogram gradient boosting", role="baseline"),
        Arm("linear", label="linear model", role="control"),
        Arm("dummy", label="a constant", role="control"),
    )
}

GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "boosted-network": {"learning_rate": (0.05, 0.1, 0.5), "units_per_step": (1, 4)},
    "mlp": {"alpha": (1e-4, 1e-2, 1.0), "learning_rate_init": (1e-3, 1e-2)},
    "hist-gradient-boosting": {"learning_rate": (0.03, 0.1, 0.3), "max_leaf_nodes": (7, 31)},
    "linear": {"penalty": (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)},
    "dummy": {},
}

WHOLE = {"units_per_step", "max_leaf_nodes"}


def grid(arm: str) -> list[dict[str, float]]:
    """Every combination of an arm's settings."""
    names = list(GRIDS[arm])
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*GRIDS[arm].values())]


def build_pipeline(
    arm: str,
    settings: Mapping[str, float],
    kind: str,
    numeric: Sequence[str],
    categorical: Sequence[str],
    seed: int = 0,
) -> Any:
    """The unfitted pipeline of an arm with these settings, for these columns."""
    from sklearn.pipeline import make_pipeline

    boosting = arm == "hist-gradient-boosting"
    values: dict[str, Any] = {k: int(v) if k in WHOLE else v for k, v in settings.items()}
    if boosting:
        values["categorical_features"] = list(range(len(numeric), len(numeric) + len(categorical))) or None
    columns = preprocessing(numeric, categorical, for_trees=boosting)
    return make_pipeline(columns, MODELS[arm](values, kind == "classification", seed))


def preprocessing(numeric: Sequence[str], categorical: Sequence[str], *, for_trees: bool = False) -> Any:
    """The unfitted `ColumnTransformer` of the module's description."""
    from sklearn.compose import ColumnTransformer

    steps: list[tuple[str, Any, list[str]]] = []
    if numeric:
        steps.append(("numeric", "passthrough" if for_trees else _scaled(), list(numeric)))
    if categorical:
        steps.append(("categorical", _codes() if for_trees else _one_hot(), list(categorical)))
    return ColumnTransformer(steps)


def _scaled() -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fill = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(fill, StandardScaler())


def _one_hot() -> Any:
    from sklearn.preprocessing import OneHotEncoder

    return OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=33, sparse_output=False)


def _codes() -> Any:
    from sklearn.preprocessing import OrdinalEncoder

    return OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=math.nan,
        encoded_missing_value=math.nan,
        max_categories=200,
    )


def _boosted_network(values: Mapping[str, Any], classify: bool, seed: int) -> Any:
    from gradatim.models.boosted_network import BoostedMLPClassifier, BoostedMLPRegressor

    model = BoostedMLPClassifier if classify else BoostedMLPRegressor
    return model(n_iter_no_change=10, random_state=seed, **values)


def _boosted_trees(values: Mapping[str, Any], classify: bool, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    model = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
    return model(max_iter=200, random_state=seed, **values)


def _mlp(values: Mapping[str, Any], classify: bool, seed: int) -> Any:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import StandardScaler

    model = (MLPClassifier if classify else MLPRegressor)(max_iter=400, random_state=seed, **values)
    # Its loss and step sizes depend on the target's unit; the boosted network scales its own.
    return model if classify else TransformedTargetRegressor(model, transformer=StandardScaler())


def _linear(values: Mapping[str, Any], classify: bool, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    penalty = values["penalty"]
    return LogisticRegression(C=1 / penalty, max_iter=2000) if classify else Ridge(alpha=penalty)


def _constant(values: Mapping[str, Any], classify: bool, seed: int) -> Any:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyClassifier(strategy="prior") if classify else DummyRegressor(strategy="mean")


MODELS: dict[str, Callable[[Mapping[str, Any], bool, int], Any]] = {
    "boosted-network": _boosted_network,
    "mlp": _mlp,
    "hist-gradient-boosting": _boosted_trees,
    "linear": _linear,
    "dummy": _constant,
}
