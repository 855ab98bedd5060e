"""A fitted network with its preprocessing as two files that no one needs to trust.

`network.safetensors` holds the layers, `network.json` everything else: columns, medians, means,
deviations, categories, classes. Nothing is pickled, so loading a file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

Link = Literal["binary", "softmax", "identity"]
ACTIVATIONS: Mapping[str, Any] = {
    "identity": lambda x: x,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


@dataclass(frozen=True)
class SavedNetwork:
    """x -> preprocessing -> W_1, activation, W_2, ... -> link.

    `layers` are (weights [in, out], biases [out]); `link` is "binary" (one logit), "softmax", or
    "identity", whose output is `mean + deviation * value`.
    """

    columns: Mapping[str, Any]
    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    activation: str
    link: Link
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """Class labels as strings, or numbers."""
        if self.link == "identity":
            return self._outputs(table)[:, 0] * self.deviation + self.mean
        return np.asarray(self.classes, dtype=object)[self.predict_proba(table).argmax(axis=1)]

    def predict_proba(self, table: pd.DataFrame) -> np.ndarray:
        """[rows, classes]; ValueError for a regression."""
        if self.link == "identity":
            raise ValueError("a regression has no class probabilities; use predict")
        outputs = self._outputs(table)
        if self.link == "binary":
            return np.column_stack([expit(-outputs[:, 0]), expit(outputs[:, 0])])
        return np.asarray(softmax(outputs, axis=1))

    def _outputs(self, table: pd.DataFrame) -> np.ndarray:
        hidden = _prepared(self.columns, table)
        for i, (weight, bias) in enumerate(self.layers):
            hidden = hidden @ weight + bias
            if i < len(self.layers) - 1:
                hidden = ACTIVATIONS[self.activation](hidden)
        return hidden

    def save(self, folder: str | Path) -> None:
        """Write both files into an existing folder."""
        from safetensors.numpy import save_file

        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors[f"{i}.weight"] = np.ascontiguousarray(weight)
            tensors[f"{i}.bias"] = np.ascontiguousarray(bias)
        save_file(tensors, Path(folder) / "network.safetensors")
        document = {
            "columns": self.columns,
            "activation": self.activation,
            "link": self.link,
            "classes": list(self.classes),
            "mean": self.mean,
            "deviation": self.deviation,
        }
        text = json.dumps(document, indent=1, allow_nan=False)
        (Path(folder) / "network.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> SavedNetwork:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        document = json.loads((Path(folder) / "network.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / "network.safetensors")
        layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(tensors) // 2)]
        return cls(
            columns=document["columns"],
            layers=layers,
            activation=document["activation"],
            link=document["link"],
            classes=tuple(document["classes"]),
            mean=document["mean"],
            deviation=document["deviation"],
        )


def from_pipeline(pipeline: Any, kind: str) -> SavedNetwork | None:
    """A fitted pipeline of a `tabular_arms` network or linear model; None for any other (trees, constants).

    Its predictions are those of the pipeline.
    """
    columns, model = pipeline[0], pipeline[-1]
    mean, deviation = 0.0, 1.0
    if hasattr(model, "regressor_"):
        mean, deviation = float(model.transformer_.mean_[0]), float(model.transformer_.scale_[0])
        model = model.regressor_
    if hasattr(model, "coefs_"):
        layers = [
            (np.asarray(w), np.asarray(b)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)
        ]
        activation = str(model.activation)
    elif hasattr(model, "coef_"):
        weight = np.atleast_2d(model.coef_).T
        layers = [(weight, np.atleast_1d(np.asarray(model.intercept_, dtype=np.float64)))]
        activation = "identity"
    else:
        return None
    classes = tuple(str(c) for c in model.classes_) if kind == "classification" else ()
    link: Link = "identity" if not classes else "binary" if layers[-1][0].shape[1] == 1 else "softmax"
    return SavedNetwork(describe_columns(columns), layers, activation, link, classes, mean, deviation)


def describe_columns(columns: Any) -> dict[str, Any]:
    """What a fitted `tabular_arms.preprocessing` learned, as JSON values."""
    found: dict[str, Any] = {}
    for name, step, names in columns.transformers_:
        if name == "numeric":
            fill, scaler = step[0], step[1]
            found["numeric"] = {
                "names": list(names),
                "medians": fill.statistics_.tolist(),
                "missing_flags": fill.indicator_.features_.tolist(),
                "means": scaler.mean_.tolist(),
                "deviations": scaler.scale_.tolist(),
            }
        elif name == "categorical":
            rare = step.infrequent_categories_
            found["categorical"] = {
                "names": list(names),
                "values": [[_plain(v) for v in values] for values in step.categories_],
                "rare": [None if r is None else [_plain(v) for v in r] for r in rare],
            }
    return found


def _prepared(columns: Mapping[str, Any], table: pd.DataFrame) -> np.ndarray:
    parts = []
    if numeric := columns.get("numeric"):
        values = table[numeric["names"]].to_numpy(dtype=np.float64)
        absent = np.isnan(values)
        filled = np.where(absent, np.asarray(numeric["medians"]), values)
        flags = absent[:, numeric["missing_flags"]].astype(np.float64)
        both = np.hstack([filled, flags])
        parts.append((both - np.asarray(numeric["means"])) / np.asarray(numeric["deviations"]))
    if categorical := columns.get("categorical"):
        for name, values, rare in zip(
            categorical["names"], categorical["values"], categorical["rare"], strict=True
        ):
            parts.append(_one_hot(table[name].tolist(), values, rare))
    return np.hstack(parts)


def _one_hot(column: list[Any], values: list[str | None], rare: list[str | None] | None) -> np.ndarray:
    frequent = [v for v in values if rare is None or v not in rare]
    place = {v: i for i, v in enumerate(frequent)}
    width = len(frequent) + (rare is not None)
    out = np.zeros((len(column), width))
    for row, value in enumerate(column):
        at = place.get(_plain(value), len(frequent) if rare is not None else -1)
        if at >= 0:
            out[row, at] = 1.0
    return out


def _plain(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
