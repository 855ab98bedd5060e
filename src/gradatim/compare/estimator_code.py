"""A scikit-learn estimator as the Python that builds it."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from sklearn.base import BaseEstimator

Names = Mapping[tuple[str, ...], str]

# Stands in for a space inside a column's name while lines are broken.
SPACE = "\ue000"


def estimator_code(
    estimator: BaseEstimator, variables: Mapping[str, list[str]], name: str = "model"
) -> tuple[list[str], str]:
    """(import lines, assignments up to `NAME = ...`) for an unfitted estimator.

    Parameters at their default are left out. A list that equals one of `variables` is written as that
    variable, which is assigned first.
    """
    imports: set[str] = set()
    lists = [f"{variable} = {_list_of_names(values)}" for variable, values in variables.items() if values]
    names = {tuple(values): variable for variable, values in variables.items() if values}
    model = _expression(estimator, imports, names, 0)
    return sorted(imports), "\n".join([*lists, f"{name} = {model}"])


def _list_of_names(values: list[str]) -> str:
    line = repr(values)
    if len(line) <= 88:
        return line
    inner = textwrap.fill(", ".join(_unbreakable(v) for v in values), 84).replace(SPACE, " ")
    return "[\n" + textwrap.indent(inner, "    ") + ",\n]"


def _unbreakable(value: str) -> str:
    return repr(value).replace(" ", SPACE)


def _expression(value: Any, imports: set[str], names: Names, depth: int) -> str:
    if isinstance(value, BaseEstimator):
        kind = type(value)
        imports.add(f"from {_public_module(kind)} import {kind.__name__}")
        arguments = [
            f"{key}={_expression(given, imports, names, depth + 1)}" for key, given in _changed(value).items()
        ]
        return _wrapped(f"{kind.__name__}(", arguments, ")", depth)
    if isinstance(value, list):
        if all(isinstance(v, str) for v in value) and tuple(value) in names:
            return names[tuple(value)]
        return _wrapped("[", [_expression(v, imports, names, depth + 1) for v in value], "]", depth)
    if isinstance(value, tuple):
        inside = ", ".join(_expression(v, imports, names, depth) for v in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _wrapped(opening: str, parts: list[str], closing: str, depth: int) -> str:
    line = f"{opening}{', '.join(parts)}{closing}"
    if len(line) + 4 * depth <= 88 and "\n" not in line:
        return line
    inner = "    " * (depth + 1)
    return "\n".join([opening, *(f"{inner}{part}," for part in parts), f"{'    ' * depth}{closing}"])


def _changed(estimator: BaseEstimator) -> dict[str, Any]:
    defaults = inspect.signature(type(estimator).__init__).parameters
    return {
        key: value
        for key, value in sorted(
            estimator.get_params(deep=False).items(), key=lambda item: list(defaults).index(item[0])
        )
        if isinstance(value, BaseEstimator | list)
        or not (value is defaults[key].default or value == defaults[key].default)
    }


def _public_module(kind: type) -> str:
    """`sklearn.linear_model` for `sklearn.linear_model._logistic`, `gradatim.models` for its modules."""
    parts = kind.__module__.split(".")
    if parts[0] == "gradatim":
        return ".".join(parts[:2])
    public = [part for part in parts if not part.startswith("_")]
    return ".".join(public[:2]) if parts[0] == "sklearn" else ".".join(public)
