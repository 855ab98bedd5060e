"""A re-ranker trained from judged queries and a first-stage run, and its use on another run.

It serves any model that scores (query, document) pairs as a CrossEncoder does, ConvKNRM included.

    model = ConvKNRM.from_sentence_transformer("minilm")
    train_reranker(model, queries, corpus, run, qrels, validation_qrels=held_out)
    better = rerank_run(model, queries, corpus, run)

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradatim.curricula.difficulty import Heuristic, pairwise_difficulty
from gradatim.curricula.linear import LinearCurriculum
from gradatim.curricula.run_pairs import Pair, RunPairs, heuristic_table, ranked_documents
from gradatim.losses.pairwise_curriculum import PairwiseCurriculumLoss
from gradatim.losses.pointwise_curriculum import PointwiseCurriculumLoss
from gradatim.models.quiet import quietly
from gradatim.models.run_blending import blend_run
from gradatim.tasks.retrieval import Qrels, Run, evaluate_run

KINDS = ("pairwise", "pointwise")


@dataclass(frozen=True)
class RerankerHistory:
    """Mean loss and, if it was measured, validation MRR@10 of each iteration; which one was kept (from 0).

    `start` is the validation MRR@10 before training where it was asked for; `kept` is -1 where no iteration
    beat it.
    """

    losses: tuple[float, ...]
    validation: tuple[float, ...]
    kept: int
    start: float | None = None


def train_reranker(
    model: Any,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    run: Run,
    qrels: Qrels,
    *,
    kind: str = "pairwise",
    loss: str | None = None,
    curriculum: LinearCurriculum | None = None,
    heuristic: Heuristic | str = "norm",
    weighting: str = "sample",
    iterations: int = 20,
    steps_per_iteration: int = 32,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    encoder_learning_rate: float = 2e-5,
    by: str = "query",
    negatives: int = 1,
    least_grade: int = 1,
    validation_qrels: Qrels | None = None,
    validate_top: int = 20,
    patience: int = 20,
    keep_start: bool = False,
    blend: float | int = 1.0,
    autocast: bool = False,
    seed: int = 0,
) -> RerankerHistory:
    """Trains `model` in place with Adam on pairs drawn from the run; see `RunPairs` for how.

    With `validation_qrels` the run's top `validate_top` of those queries are re-ranked after every iteration;
    training stops after `patience` iterations without a better MRR@10 and leaves the best weights in the
    model. Queries under validation are not trained on.

    Args:
        kind, loss: pairwise or pointwise, and which loss of PairwiseCurriculumLoss or PointwiseCurriculumLoss
            (default: its own). Pointwise training scores both documents of a pair, with their grades.
        curriculum, heuristic, weighting: how examples are weighted; no curriculum by default. The heuristics
            read the run's scores: give them as the first stage computed them.
        learning_rate: of a ConvKNRM, and of the newly made head of a CrossEncoder.
        encoder_learning_rate: of the pretrained part of a CrossEncoder.
        keep_start: validate the model as it comes, too, and leave it so where no iteration is better.
        blend: weight of the model beside the first stage when validation re-ranks (see `blend_run`).
        autocast: bfloat16 where the model's device has it.
        seed: of pairs and dropout; global random state is left as it was.

    Raises ValueError for an unknown kind, sizes below 1, a run without usable pairs, and what the losses
    refuse.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose pairwise or pointwise")
    for name, value in (("iterations", iterations), ("steps_per_iteration", steps_per_iteration),
                        ("batch_size", batch_size), ("patience", patience)):  # fmt: skip
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    held_out = validation_qrels or {}
    judged = {query: grades for query, grades in qrels.items() if query not in held_out}
    count = iterations * steps_per_iteration * batch_size
    source = RunPairs(run, judged, seed, by, negatives, least_grade)
    pairs = source.stream(count)
    heights = {} if curriculum is None else heuristic_table(run, sorted({p.query for p in pairs}), heuristic)
    options: dict[str, Any] = {"curriculum": curriculum, "weighting": weighting} | (
        {"loss": loss} if loss else {}
    )
    objective: Any = (PairwiseCurriculumLoss if kind == "pairwise" else PointwiseCurriculumLoss)(
        model, **options
    )
    examples = _pairwise if kind == "pairwise" else _pointwise
    optimizer = torch.optim.Adam(_groups(model, learning_rate, encoder_learning_rate))
    losses: list[float] = []
    scores: list[float] = []
    best: dict[str, Tensor] | None = None

    def validated() -> float:
        shown = {q: run[q] for q in held_out if q in run}
        found = rerank_run(model, queries, corpus, shown, validate_top, blend=blend)
        return evaluate_run(found, held_out, mrr_least_grade=least_grade)["mrr@10"]

    start, kept = None, -1
    if keep_start and validation_qrels is not None:
        start, best = validated(), _weights(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for iteration in range(iterations):
            model.train()
            total = 0.0
            for i in range(steps_per_iteration):
                objective.step = iteration * steps_per_iteration + i
                if curriculum is not None:
                    seen = objective.step * batch_size
                    epochs = seen / len(source)
                    objective.position = curriculum.position(seen, objective.step, epochs)
                batch = pairs[objective.step * batch_size :][:batch_size]
                texts, labels = examples(batch, queries, corpus, judged, heights)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
                    value = objective(texts, labels)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += float(value.detach())
            losses.append(total / steps_per_iteration)
            if validation_qrels is not None:
                scores.append(validated())
                before = [*([] if start is None else [start]), *scores[:-1]]
                if scores[-1] > max(before, default=-math.inf):
                    best, kept = _weights(model), iteration
                if iteration - kept >= patience:
                    break
            else:
                kept = iteration
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return RerankerHistory(tuple(losses), tuple(scores), kept, start)


def rerank_run(
    model: Any,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    run: Run,
    top: int = 30,
    batch_size: int = 64,
    *,
    blend: float | int = 1.0,
) -> dict[str, dict[str, float]]:
    """The run with each query's first `top` documents in the model's order, the others behind as they were.

    With `blend` below 1 the order is that of `blend_run`: the model's scores mixed with the run's. Scores
    fall with rank. Raises ValueError for a `top` below 1 or a query whose run is empty.
    """
    return blend_run(run, score_run(model, queries, corpus, run, top, batch_size), blend)


def score_run(
    model: Any,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    run: Run,
    top: int = 30,
    batch_size: int = 64,
) -> dict[str, dict[str, float]]:
    """The model's score of each query's first `top` documents. Raises ValueError as `rerank_run` does."""
    if top < 1:
        raise ValueError(f"top={top} must be at least 1 document")
    order = {query: ranked_documents(query, docs)[:top] for query, docs in run.items()}
    pairs = [(queries[query], corpus[doc]) for query, docs in order.items() for doc in docs]
    if not pairs:
        return {}
    scores = model.predict(pairs, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    values = iter(scores.float().tolist())
    return {query: {doc: next(values) for doc in docs} for query, docs in order.items()}


def load_cross_encoder(
    name: str = "minilm", max_length: int = 96, device: str | None = "cpu", seed: int = 0
) -> Any:
    """A `CrossEncoder` of one output on a pretrained encoder: "minilm", a folder or a Hugging Face name.

    The new head's weights follow from the seed; scores are raw logits. Raises EncoderUnavailableError with
    one line that says what to do.
    """
    from gradatim.models.text_encoder import EncoderUnavailableError, encoder_folder

    folder = encoder_folder(name)
    from sentence_transformers import CrossEncoder

    try:
        with quietly(), torch.random.fork_rng():
            torch.manual_seed(seed)
            return CrossEncoder(
                str(folder or name),
                num_labels=1,
                max_length=max_length,
                device=device,
                activation_fn=torch.nn.Identity(),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EncoderUnavailableError(
            f"{name!r} could not be opened as a cross-encoder ({reason}); give a folder or 'minilm'"
        ) from error


Texts = list[list[str]]
Heights = Mapping[str, Mapping[str, float]]


def _pairwise(
    pairs: Sequence[Pair],
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Qrels,
    heights: Heights,
) -> tuple[Texts, Tensor | None]:
    """Text columns query, positive, negative ... and the difficulty of each pair."""
    negatives = [[corpus[pair.negatives[i]] for pair in pairs] for i in range(len(pairs[0].negatives))]
    texts = [[queries[pair.query] for pair in pairs], [corpus[pair.positive] for pair in pairs], *negatives]
    if not heights:
        return texts, None
    positive = torch.tensor([heights[pair.query].get(pair.positive, 0.0) for pair in pairs])
    others = torch.tensor([[heights[p.query].get(doc, 0.0) for doc in p.negatives] for p in pairs])
    return texts, pairwise_difficulty(positive, others)


def _pointwise(
    pairs: Sequence[Pair],
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Qrels,
    heights: Heights,
) -> tuple[Texts, Tensor]:
    """Text columns query and doc, of every document of the pairs, and [relevance, H] of each."""
    each = [(pair.query, doc) for pair in pairs for doc in (pair.positive, *pair.negatives)]
    labels = [[float(qrels[q].get(d, 0)), heights[q].get(d, 0.0) if heights else 0.0] for q, d in each]
    return [[queries[q] for q, _ in each], [corpus[d] for _, d in each]], torch.tensor(labels)


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in model.state_dict().items()}


def _groups(model: Any, rate: float, encoder_rate: float) -> list[dict[str, Any]]:
    """Trainable weights with their rates: those of a pretrained body, and all others."""
    network = getattr(model, "model", None)
    body = getattr(network, getattr(network, "base_model_prefix", ""), None) if network is not None else None
    pretrained = set() if body is None else {id(weight) for weight in body.parameters()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trained if id(w) in pretrained], "lr": encoder_rate},
        {"params": [w for w in trained if id(w) not in pretrained], "lr": rate},
    ]
    return [group for group in groups if group["params"]]
