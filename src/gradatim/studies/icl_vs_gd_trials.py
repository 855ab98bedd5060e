"""The trials of study 17 on a language model: ask by prompt, ask after training, compare the answers."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.inference import (
    GradientPredictor,
    InContextPredictor,
    ZeroShotPredictor,
    descend_orders,
    orders,
)
from gradatim.inference.order_descent import Ask, StackedState
from gradatim.models.causal_lm import (
    CausalLMUnavailableError,
    causal_lm_digest,
    check_causal_lm,
    load_causal_lm,
    untrained_twin,
)
from gradatim.probes import update_similarity, weight_sparsity
from gradatim.probes.distribution_overlap import (
    accuracy,
    overlap_cosine,
    token_overlap,
    total_variation,
    union_cosine,
)
from gradatim.probes.order_sensitivity import OrderSensitivity, spread_of
from gradatim.tasks.text_classification import Shots, TextTask, read_text_classification, statements

DATA_VARIABLE = "GRADATIM_TEXT_DATA"
# A state of gradient descent stands in for prompting when both hold at once.
RATIO, OVERLAP_SLACK = math.log(1.25), 0.05
MEASURES = {"to": token_overlap, "ocs": overlap_cosine, "union": union_cosine}


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed: a seed is a set of demonstrations, its orders, and test items."""
    kind = arm.settings["kind"]
    if kind == "boolean":
        from gradatim.studies.icl_vs_gd_boolean import boolean_batch

        return boolean_batch(arm.settings, seeds, scale)
    check_causal_lm(scale["model"])
    trials = {
        "zero": _zero_shot,
        "icl": _in_context,
        "gd": _descent,
        "weights": _weights,
        "updates": _updates,
    }
    return [trials[kind](Cell.of(arm.settings, seed, scale)) for seed in seeds]


def data_version(scale: Scale) -> str:
    """The language model by its files, and the user's data by its text."""
    try:
        model = causal_lm_digest(scale["model"])[:16]
    except CausalLMUnavailableError:
        model = "absent"  # listing studies must not fail; the trials say what to install
    task = _task("sentiment", data_path(scale))
    words = "\0".join((*task.texts, *task.labels))
    return f"{model}; {hashlib.sha256(words.encode()).hexdigest()[:16]}"


def data_path(scale: Scale) -> str:
    """The user's file for the arms `text/...`: the scale's own, else GRADATIM_TEXT_DATA, else ""."""
    return str(scale.get("data") or os.environ.get(DATA_VARIABLE, ""))


@dataclass(frozen=True)
class Cell:
    """Everything a trial depends on, hashable: model, task, sizes, seed and the arm's settings."""

    model: str
    task: str
    data: str
    shots: int
    items: int
    orders: int
    seed: int
    k: int
    record: tuple[int, ...]
    epochs: int
    stop: float
    batch_size: int = 1
    device: str = "cpu"
    shuffled: bool = False
    untrained: bool = False
    scope: str = "all"
    optimizer: str = "sgd"
    lrs: tuple[float, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any], seed: int, scale: Scale) -> Cell:
        """The arm's settings over the profile's."""
        size = {**scale, **settings}
        return cls(
            model=size["model"],
            task=size.get("task", "sentiment"),
            data=data_path(scale) if settings.get("task", "sentiment") == "sentiment" else "",
            **{name: int(size[name]) for name in ("shots", "items", "orders", "k", "epochs")},
            stop=float(size["stop"]),
            batch_size=int(size.get("batch_size", 1)),
            device="cuda" if size.get("device") == "auto" and torch.cuda.is_available() else "cpu",
            seed=seed,
            record=tuple(size["record"]),
            shuffled=bool(size.get("shuffled", False)),
            untrained=bool(size.get("untrained", False)),
            scope=size.get("scope", "all"),
            optimizer=size.get("optimizer", "sgd"),
            lrs=tuple(size.get("lrs", ())),
        )

    def prompting(self) -> Cell:
        """The cell of plain prompting that this one is compared with: the same demonstrations and orders."""
        return replace(
            self, record=(), epochs=0, stop=0.0, batch_size=1, scope="", optimizer="", lrs=(), shuffled=False
        )


@lru_cache(maxsize=2)
def _task(name: str, data: str) -> TextTask:
    return read_text_classification(data) if data else statements(name)


@lru_cache(maxsize=1)
def _language_model(name: str, untrained: bool, device: str = "cpu") -> tuple[Any, Any]:
    model, tokenizer = load_causal_lm(name, device=device)
    return (untrained_twin(model) if untrained else model), tokenizer


def _parts(cell: Cell) -> tuple[Any, Any, Any, Mapping[str, str]]:
    task = _task(cell.task, cell.data)
    model, tokenizer = _language_model(cell.model, cell.untrained, cell.device)
    return model, tokenizer, task.template, {c: task.words[c] for c in task.classes}


def _shots(cell: Cell) -> Shots:
    """The demonstrations and items of a seed; labels in another order where they are to be shuffled."""
    drawn = _task(cell.task, cell.data).draw(cell.shots, cell.items, cell.seed)
    if not cell.shuffled:
        return drawn
    rng = np.random.default_rng([17, 2, cell.seed])
    labels = list(drawn.labels)
    while labels == list(drawn.labels) and len(set(labels)) > 1:
        labels = [drawn.labels[i] for i in rng.permutation(len(labels))]
    return replace(drawn, labels=tuple(labels))


def _orders(cell: Cell) -> list[list[int]]:
    return orders(cell.shots, cell.orders, cell.seed) if cell.shots > 1 else [[0]]


@lru_cache(maxsize=16)
def _zero(cell: Cell) -> Tensor:
    return ZeroShotPredictor(*_parts(cell)).next_token_proba(list(_shots(cell).test_texts))


@lru_cache(maxsize=8)
def _prompted(cell: Cell) -> tuple[Tensor, OrderSensitivity | None]:
    """Distributions of every order [orders, items, vocabulary], and their spread."""
    shots, icl = _shots(cell), InContextPredictor(*_parts(cell))
    drawn = _orders(cell)
    p = torch.stack(
        [icl.fit(shots.texts, shots.labels, o).next_token_proba(list(shots.test_texts)) for o in drawn]
    )
    return p, _spread(cell, p)


def _spread(cell: Cell, p: Tensor) -> OrderSensitivity | None:
    if len(p) < 2:
        return None
    words = list(InContextPredictor(*_parts(cell)).label_ids.values())
    return spread_of(p, _orders(cell), words, k=cell.k, reference=_zero(cell.prompting()))


def _answers(cell: Cell, p: Tensor) -> dict[str, float]:
    """Accuracies, mass on the words, way from zero-shot: means over orders and items."""
    shots, ids = _shots(cell), InContextPredictor(*_parts(cell)).label_ids
    right = [accuracy(q, [ids[c] for c in shots.test_labels], list(ids.values())) for q in p]
    zero = _zero(cell.prompting())
    return {
        "accuracy": float(np.mean([full for full, _ in right])),
        "restricted": float(np.mean([among for _, among in right])),
        "label_mass": float(p[:, :, list(ids.values())].sum(-1).double().mean()),
        "moved": float(total_variation(p.double(), zero.double().expand_as(p)).mean()),
    }


def _sensitivity(spread: OrderSensitivity | None) -> dict[str, float]:
    if spread is None:
        return {}
    found = {"sen": spread.sen, "flips": spread.flips, "sen_on_labels": float(spread.on_labels.mean())}
    return found if spread.per_move is None else {**found, "sen_per_move": spread.per_move}


def _overlaps(p: Tensor, q: Tensor, k: int) -> dict[str, float]:
    """Means over paired orders and items."""
    return {name: float(measure(p, q, k).double().mean()) for name, measure in MEASURES.items()}


def _self_overlaps(p: Tensor, k: int) -> dict[str, float]:
    """The same between different orders of one learner."""
    i, j = (list(side) for side in zip(*combinations(range(len(p)), 2), strict=True))
    return _overlaps(p[i], p[j], k)


def _strips(cell: Cell, p: Tensor) -> dict[str, Curve]:
    """Probability of the first class among the words, per order and item."""
    ids = list(InContextPredictor(*_parts(cell)).label_ids.values())
    share = p[:, :, ids[0]] / p[:, :, ids].sum(-1)
    items = list(range(share.shape[1]))
    return {
        f"order-{i}": Curve(items, [round(v, 5) for v in row.tolist()], "test item", "P(first class)")
        for i, row in enumerate(share)
    }


# -- the arms ------------------------------------------------------------------------------------------


def _zero_shot(cell: Cell) -> Outcome:
    return Outcome(_answers(cell, _zero(cell.prompting())[None]))


def _in_context(cell: Cell) -> Outcome:
    base = replace(cell.prompting(), shuffled=cell.shuffled)
    p, spread = _prompted(base)
    metrics = {**_answers(base, p), **_sensitivity(spread)}
    metrics["to_zero"] = _overlaps(p, _zero(cell.prompting()).expand_as(p), cell.k)["to"]
    if spread is not None:
        metrics |= {f"{name}_self": value for name, value in _self_overlaps(p, cell.k).items()}
        if not cell.shuffled and not cell.untrained:
            metrics |= _fresh_orders(base, p, spread, metrics["to_self"])
    if cell.shuffled:
        plain, _ = _prompted(cell.prompting())
        metrics["to_icl"] = _overlaps(p, plain, cell.k)["to"]
    return Outcome(metrics, _strips(base, p))


def _fresh_orders(cell: Cell, p: Tensor, spread: OrderSensitivity, ceiling: float) -> dict[str, float]:
    """Prompting in as many other orders, judged as a state of gradient descent is."""
    known = _orders(cell)
    more = [o for o in orders(cell.shots, 2 * cell.orders, cell.seed) if o not in known]
    if len(more) < len(known):
        return {}
    shots, icl = _shots(cell), InContextPredictor(*_parts(cell))
    asked = list(shots.test_texts)
    q = torch.stack([icl.fit(shots.texts, shots.labels, o).next_token_proba(asked) for o in more])
    ratio = math.log(spread_of(q, more, []).sen / spread.sen)
    return {"self_log_ratio": ratio, "self_gap": _gap(ratio, _overlaps(p, q, cell.k)["to"], ceiling)}


def _gap(log_ratio: float, overlap: float, ceiling: float) -> float:
    """How far a state is from standing in for prompting; 0 or less inside the region."""
    return max(abs(log_ratio) - RATIO, ceiling - OVERLAP_SLACK - overlap)


def _descent(cell: Cell) -> Outcome:
    """Gradient descent in every order and at every rate, judged at equal training accuracy and in hindsight.

    The rate is the one with the lowest training loss at the end; test items choose nothing.
    """
    shots, base = _shots(cell), cell.prompting()
    icl, spread = _prompted(base)
    ceiling = _self_overlaps(icl, cell.k)["to"] if len(icl) > 1 else 1.0
    gd = GradientPredictor(
        *_parts(cell), scope=_scope(cell), optimizer=cell.optimizer, batch_size=cell.batch_size,
        epochs=cell.epochs, stop=cell.stop or None,
    )  # fmt: skip
    drawn, rates = _orders(cell), len(cell.lrs)
    path: list[tuple[StackedState, Tensor, list[dict[str, float]]]] = []

    def note(state: StackedState, ask: Ask) -> None:
        if state.epoch not in cell.record and state.epoch < cell.epochs and not bool(state.stopped.all()):
            return
        p = ask(list(shots.test_texts)).unflatten(0, (rates, len(drawn)))
        judged = []
        for q in p:
            own = _spread(cell, q)
            found = {**_sensitivity(own), **_overlaps(icl, q, cell.k)}
            if own is not None and spread is not None and own.sen > 0:
                found["log_ratio"] = math.log(own.sen / spread.sen)
                found["gap"] = _gap(found["log_ratio"], found["to"], ceiling)
            judged.append(found)
        path.append((state, p, judged))

    last = descend_orders(gd, shots.texts, shots.labels, drawn, lrs=cell.lrs, on_epoch=note)
    loss = last.loss.unflatten(0, (rates, -1)).mean(1)
    chosen = int(loss.argmin())
    _, p, judged = path[-1]
    metrics = {**_answers(cell, p[chosen]), **_sensitivity(_spread(cell, p[chosen]))}
    metrics |= {f"{name}_icl": judged[chosen][name] for name in MEASURES}
    for name in MEASURES:  # in hindsight: whatever epoch and rate would have been best
        metrics[f"best_{name}"] = max(found[name] for _, _, states in path for found in states)
    gaps = [found["gap"] for _, _, states in path for found in states if "gap" in found]
    if gaps:
        metrics["gap"] = min(gaps)
    metrics |= {
        "lr": cell.lrs[chosen],
        "training_loss": float(loss[chosen]),
        "training_accuracy": float(last.accuracy.unflatten(0, (rates, -1))[chosen].mean()),
        "fitted": float(last.stopped.unflatten(0, (rates, -1))[chosen].double().mean()),
        "epochs": float(last.epoch),
    }
    curves = _strips(cell, p[chosen])
    epochs = [float(state.epoch) for state, _, _ in path]
    for i, lr in enumerate(cell.lrs):
        for name in ("sen", "to", "log_ratio"):
            if all(name in states[i] for _, _, states in path):
                curves[f"{name}-{lr:g}"] = Curve(epochs, [s[i][name] for _, _, s in path], "epoch", name)
    return Outcome(metrics, curves)


def _scope(cell: Cell) -> str:
    """ "value:middle" and "value:deep" are half and three quarters of the way up."""
    if cell.scope not in ("value:middle", "value:deep"):
        return cell.scope
    layers = _parts(cell)[0].config.get_text_config().num_hidden_layers
    return f"value:{layers // 2 if cell.scope.endswith('middle') else 3 * layers // 4}"


@lru_cache(maxsize=2)
def _sparsity(model: str, untrained: bool) -> dict[str, float]:
    net, _ = _language_model(model, untrained)
    table = weight_sparsity(net)
    found: dict[str, float] = {}
    for kind in ("query", "key", "value"):
        spread = table[f"{kind}_std"][0]
        relative = weight_sparsity(net, [100 / spread])[kind][0]
        found |= {f"near_zero_{kind}": table[kind][0], f"relative_{kind}": relative, f"std_{kind}": spread}
    for name in ("near_zero", "relative"):
        found[f"{name}_qk"] = max(found[f"{name}_query"], found[f"{name}_key"])
    return found


def _weights(cell: Cell) -> Outcome:
    """Shares of small entries; the same for every seed."""
    return Outcome(_sparsity(cell.model, cell.untrained))


def _updates(cell: Cell) -> Outcome:
    """The older similarity measures between a prompt and training in one order."""
    shots = _shots(cell)
    icl = InContextPredictor(*_parts(cell)).fit(shots.texts, shots.labels)
    # The same training for a model without knowledge: it cannot be asked to fit.
    gd = GradientPredictor(*_parts(cell), scope=_scope(cell), lr=cell.lrs[0], epochs=4, stop=None)
    gd.fit(shots.texts, shots.labels)
    found = update_similarity(icl, gd, list(shots.test_texts), list(shots.test_labels), seed=cell.seed)
    metrics = {
        "sim_aou": float(found.sim_aou.mean()),
        "sim_aou_gaussian": float(found.sim_aou_gaussian.mean()),
        "sim_am": float(found.sim_am.mean()),
        "sim_am_zero_shot": float(found.sim_am_zero_shot.mean()),
        "recoverable": float(found.recoverable),
    }
    if found.recovered is not None:
        metrics["rec2ftp"] = found.recovered
    layers = list(range(len(found.sim_aou)))
    return Outcome(metrics, {"sim_aou": Curve(layers, found.sim_aou.tolist(), "layer", "SimAOU")})
