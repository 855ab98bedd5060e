"""The curriculum losses against loops over the formulas, and inside the cross-encoder trainer."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import PrinterCallback

from gradatim.curricula import (
    CurriculumCallback,
    LinearCurriculum,
    attach_difficulty,
    pairs_to_dataset,
    sample_pairs,
)
from gradatim.losses import (
    PAIRWISE_KINDS,
    POINTWISE_KINDS,
    PairwiseCurriculumLoss,
    PointwiseCurriculumLoss,
    pairwise_loss,
    pointwise_loss,
)
from gradatim.losses.curriculum_weighting import weighted_mean
from tiny_encoder import WORDS, tiny_encoder


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def pairwise_by_hand(kind, scores, margin=0.0):
    positive, *others = scores
    n = len(others)
    share = math.exp(positive) / sum(math.exp(s) for s in scores)
    return {
        "softmax": 1 - share,
        "cross_entropy": -math.log(share),
        "nogueira_cross_entropy": -math.log(sigmoid(positive))
        - sum(math.log(1 - sigmoid(s)) for s in others) / n,
        "hinge": sum(max(0.0, margin - positive + s) for s in others) / n,
        "mse": sum((margin - positive + s) ** 2 for s in others) / n,
    }[kind]


def pointwise_by_hand(kind, s, y):
    y = 0.0 if y == -999 else y
    p = sigmoid(s)
    gap = abs(s - y)
    return {
        "mse": lambda: gap**2,
        "l1": lambda: gap,
        "smooth_l1": lambda: 0.5 * gap**2 if gap < 1 else gap - 0.5,
        "cross_entropy": lambda: -math.log(s if y > 0 else 1 - s),
        "cross_entropy_logits": lambda: -math.log(p if y > 0 else 1 - p),
        "softmax": lambda: 1 - p if y > 0 else p,
    }[kind]()


def scores_of(batch, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=g, dtype=torch.float64) * 2


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("kind", PAIRWISE_KINDS)
def test_pairwise_values_equal_the_formulas(kind, negatives):
    scores = scores_of(6, 1 + negatives)
    for margin in (0.0, 0.7) if kind in ("hinge", "mse") else (0.0,):
        expected = [pairwise_by_hand(kind, row, margin) for row in scores.tolist()]
        rows = pairwise_loss(scores, loss=kind, margin=margin, reduction="none")
        torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


RELEVANCE = torch.tensor([0.0, 1.0, -999.0, 3.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", POINTWISE_KINDS)
def test_pointwise_values_equal_the_formulas(kind):
    scores = scores_of(6, 1)[:, 0]
    if kind == "cross_entropy":
        scores = scores.sigmoid()
    expected = [
        pointwise_by_hand(kind, s, y) for s, y in zip(scores.tolist(), RELEVANCE.tolist(), strict=True)
    ]
    rows = pointwise_loss(scores, RELEVANCE, loss=kind, reduction="none")
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_two_logit_losses_are_those_of_the_difference_of_the_logits():
    """The authors' code has class 0 = relevant; the difference of the logits is our single one."""
    logits = scores_of(5, 4).reshape(5, 2, 2)
    probability = logits.log_softmax(dim=2)
    expected = -probability[:, 0, 0] - probability[:, 1, 1]
    single = logits[..., 0] - logits[..., 1]
    rows = pairwise_loss(single, loss="nogueira_cross_entropy", reduction="none")
    torch.testing.assert_close(rows, expected)
    relevance = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    chosen = torch.where(relevance > 0, probability[:, 0, 0], probability[:, 0, 1])
    found = pointwise_loss(single[:, 0], relevance, loss="cross_entropy_logits", reduction="none")
    torch.testing.assert_close(found, -chosen)
    found = pointwise_loss(single[:, 0], relevance, loss="softmax", reduction="none")
    torch.testing.assert_close(found, 1 - chosen.exp())


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[-3e4, 3e4], [3e4, -3e4]], requires_grad=True)
    for kind in PAIRWISE_KINDS:
        value = pairwise_loss(scores, loss=kind)
        (gradient,) = torch.autograd.grad(value, scores)
        assert value.isfinite()
        assert gradient.isfinite().all()
    edge = torch.tensor([0.0, 1.0], requires_grad=True)
    value = pointwise_loss(edge, torch.tensor([1.0, 0.0]), loss="cross_entropy")
    assert value.isfinite()


# Weighting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 9, 10, 50])
def test_each_sample_has_its_own_weight(position):
    scores, d = scores_of(5, 2), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    loss = PairwiseCurriculumLoss(None, curriculum=LinearCurriculum(10, "step"))
    loss.position = position
    p = min(position / 10, 1)
    rows = [pairwise_by_hand("softmax", row) for row in scores.tolist()]
    expected = sum((w + p * (1 - w)) * r for w, r in zip(d.tolist(), rows, strict=True)) / 5
    assert loss.compute_loss_from_scores(scores, d).item() == pytest.approx(expected, abs=3e-8)


def test_batch_weighting_is_the_product_of_the_means():
    rows = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    weight = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    assert weighted_mean(rows, weight, "batch").item() == pytest.approx(0.5 * 3.0)
    assert weighted_mean(rows, weight).item() == pytest.approx(6.5 / 3)
    scores, d = scores_of(4, 2), torch.tensor([0.1, 0.4, 0.5, 1.0])
    loss = PairwiseCurriculumLoss(None, curriculum=LinearCurriculum(0), weighting="batch")
    assert loss.compute_loss_from_scores(scores, d).item() == pytest.approx(
        0.5 * pairwise_loss(scores).item(), rel=1e-6
    )


def test_several_negatives_take_the_hardest_pair():
    scores = scores_of(3, 4)
    each = torch.tensor([[0.9, 0.2, 0.5], [1.0, 1.0, 1.0], [0.0, 0.3, 0.1]])
    loss = PairwiseCurriculumLoss(None, curriculum=LinearCurriculum(0, smooth=0.0))
    rows = pairwise_loss(scores, reduction="none")
    expected = (rows * torch.tensor([0.2, 1.0, 0.0])).mean()
    torch.testing.assert_close(loss.compute_loss_from_scores(scores, each).float(), expected.float())
    torch.testing.assert_close(loss.compute_loss_from_scores(scores, list(each)).float(), expected.float())


def test_pointwise_weights_turn_the_height_around_for_irrelevant_documents():
    scores = scores_of(4, 1)[:, 0]
    labels = torch.tensor([[1.0, 0.9], [0.0, 0.9], [3.0, 0.1], [-999.0, 0.1]])
    loss = PointwiseCurriculumLoss(None, curriculum=LinearCurriculum(0, smooth=0.0))
    rows = pointwise_loss(scores, labels[:, 0].double(), reduction="none")
    expected = (rows * torch.tensor([0.9, 0.1, 0.1, 0.9])).mean()
    torch.testing.assert_close(loss.compute_loss_from_scores(scores, labels).float(), expected.float())
    torch.testing.assert_close(loss.compute_loss_from_scores(scores, list(labels)).float(), expected.float())


def test_without_a_curriculum_labels_may_be_absent_or_plain():
    scores = scores_of(4, 2)
    torch.testing.assert_close(
        PairwiseCurriculumLoss(None).compute_loss_from_scores(scores), pairwise_loss(scores)
    )
    grades = torch.tensor([1.0, 0.0, 2.0, 0.0])
    torch.testing.assert_close(
        PointwiseCurriculumLoss(None).compute_loss_from_scores(scores[:, 0], grades),
        pointwise_loss(scores[:, 0], grades),
    )


def test_the_loss_may_bring_its_own_smoothing():
    curriculum = LinearCurriculum(4, "step", anti=True)
    loss = PairwiseCurriculumLoss(None, curriculum=curriculum, smooth=0.25)
    assert loss.curriculum == LinearCurriculum(4, "step", anti=True, smooth=0.25)


# What is refused ------------------------------------------------------------------------------------------


def refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_options_are_refused():
    refused(
        "loss='logistic' is unknown; choose one of softmax", lambda: PairwiseCurriculumLoss(None, "logistic")
    )
    refused("loss='bce' is unknown; choose one of mse", lambda: PointwiseCurriculumLoss(None, "bce"))
    refused("margin=0.5 belongs to", lambda: PairwiseCurriculumLoss(None, margin=0.5))
    refused("margin=0.5 belongs to", lambda: pairwise_loss(scores_of(2, 2), margin=0.5))
    refused("scores have 1 column", lambda: pairwise_loss(scores_of(2, 1)))
    for loss in (PairwiseCurriculumLoss, PointwiseCurriculumLoss):
        refused(
            "weighting='mean' is unknown; choose sample or batch",
            lambda loss=loss: loss(None, weighting="mean"),
        )

    class TwoLogits:
        num_labels = 2

    refused("num_labels=2; load it with num_labels=1", lambda: PairwiseCurriculumLoss(TwoLogits()))
    refused("num_labels=2", lambda: PointwiseCurriculumLoss(TwoLogits()))


def test_bad_labels_and_scores_are_refused():
    pair = PairwiseCurriculumLoss(None, curriculum=LinearCurriculum(2))
    point = PointwiseCurriculumLoss(None, curriculum=LinearCurriculum(2))
    scores = scores_of(3, 3)
    refused("needs a column 'label' with the difficulty", lambda: pair.compute_loss_from_scores(scores))
    refused(r"shape \(3, 4\)", lambda: pair.compute_loss_from_scores(scores, torch.ones(3, 4)))
    refused(r"shape \(2,\)", lambda: pair.compute_loss_from_scores(scores, torch.ones(2)))
    ragged = [torch.ones(2), torch.ones(1), torch.ones(2)]
    refused("labels of rows differ in length", lambda: pair.compute_loss_from_scores(scores, ragged))
    high = torch.tensor([0.5, 0.5, 1.5])
    refused(r"difficulty 1.5 of row 2 lies outside", lambda: pair.compute_loss_from_scores(scores, high))
    # The least over negatives would hide one that is too large.
    hidden = torch.tensor([[0.5, 0.5], [0.5, 7.0], [0.5, 0.5]])
    refused(r"difficulty 7.0 of row \[1, 1\]", lambda: pair.compute_loss_from_scores(scores, hidden))
    refused("2 before", lambda: pair.compute_loss_from_scores(scores_of(3, 2), torch.ones(3)))
    refused(r"need \[relevance, H\]", lambda: point.compute_loss_from_scores(scores[:, 0], torch.ones(3)))
    bad = torch.tensor([[1.0, 0.5], [0.0, -0.1], [1.0, 0.5]])
    refused("difficulty -0.1.* of row 1", lambda: point.compute_loss_from_scores(scores[:, 0], bad))
    beyond = torch.tensor([0.5, 1.5])
    refused("score 1.5 of row 1 is no probability",
            lambda: pointwise_loss(beyond, torch.ones(2), loss="cross_entropy"))  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused_with_the_step(value):
    wrong = scores_of(3, 3)
    wrong[1, 2] = value
    pair, point = PairwiseCurriculumLoss(None), PointwiseCurriculumLoss(None)
    pair.step = 17
    refused("scores of row 1 at step 17 are not finite", lambda: pair.compute_loss_from_scores(wrong))
    refused("scores of row 1 are not", lambda: point.compute_loss_from_scores(wrong[:, 2], torch.ones(3)))


# The cross-encoder trainer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    tiny_encoder(path, seed=0)
    return str(path / "bert-0-0.0-1")


def cross_encoder(folder, **options):
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return CrossEncoder(folder, device="cpu", **{"num_labels": 1, **options})
        finally:
            logging.set_verbosity(level)


def material(rows=24, negatives=1):
    run = {f"q{i}": {f"d{j}": float((i * 7 + j * 3) % 11) for j in range(8)} for i in range(8)}
    qrels = {q: {f"d{i % 8}": 1} for i, q in enumerate(run)}
    queries = {q: f"{WORDS[i]} {WORDS[i + 8]}" for i, q in enumerate(run)}
    corpus = {f"d{j}": " ".join(WORDS[j : j + 3]) for j in range(8)}
    pairs = sample_pairs(run, qrels, seed=0, count=rows, negatives=negatives)
    return pairs_to_dataset(pairs, queries, corpus), run


def arguments(folder, steps, **options):
    return CrossEncoderTrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
        **{"seed": 1, "save_strategy": "no", **options},
    )  # fmt: skip


def train(model, loss, dataset, arguments, resume=None):
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[CurriculumCallback(loss)]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("negatives", [1, 2])
def test_pairwise_forward_scores_every_pair_of_the_batch(folder, negatives):
    model = cross_encoder(folder).eval()
    with torch.no_grad():
        model.model.classifier.weight.mul_(300)  # an untrained head scores all pairs nearly alike
    dataset, run = material(negatives=negatives)
    dataset = attach_difficulty(dataset, run, "norm")
    batch = dataset[:4]
    labels = (
        [torch.tensor(row) for row in batch.pop("label")]
        if negatives > 1
        else torch.tensor(batch.pop("label"))
    )
    loss = PairwiseCurriculumLoss(model, "cross_entropy", curriculum=LinearCurriculum(2))
    value = loss(list(batch.values()), labels)
    queries, *docs = batch.values()
    plain = torch.nn.Identity()
    each = [model.predict(list(zip(queries, d, strict=True)), activation_fn=plain) for d in docs]
    scores = torch.stack([torch.from_numpy(column) for column in each], dim=1)
    expected = PairwiseCurriculumLoss(None, "cross_entropy", curriculum=LinearCurriculum(2))
    torch.testing.assert_close(value, expected.compute_loss_from_scores(scores, labels), rtol=1e-5, atol=1e-6)


def test_pointwise_logits_without_a_curriculum_are_the_library_loss(folder):
    model = cross_encoder(folder).eval()
    dataset, _ = material()
    batch, labels = [dataset["query"][:6], dataset["positive"][:6]], torch.tensor([1.0, 0, 1, 0, 0, 1])
    torch.testing.assert_close(
        PointwiseCurriculumLoss(model, "cross_entropy_logits")(batch, labels),
        BinaryCrossEntropyLoss(model)(batch, labels),
    )


def test_trainer_trains_and_resumes_exactly(folder, tmp_path):
    dataset, run = material()
    dataset = attach_difficulty(dataset, run, "kde")

    def fresh():
        model = cross_encoder(folder)
        return model, PairwiseCurriculumLoss(model, curriculum=LinearCurriculum(3, iteration_size=8))

    model, loss = fresh()
    before = weights(model)
    train(model, loss, dataset, arguments(tmp_path / "a", 5))
    assert loss.step == 4
    assert loss.position == 16
    assert not torch.equal(weights(model), before)
    halfway, other = fresh()
    train(halfway, other, dataset, arguments(tmp_path / "b", 5, save_strategy="steps", save_steps=3))
    resumed, last = fresh()
    train(resumed, last, dataset, arguments(tmp_path / "b", 5), str(tmp_path / "b" / "checkpoint-3"))
    assert last.position == 16
    assert torch.equal(weights(resumed), weights(model))


def test_trainer_takes_pointwise_labels(folder, tmp_path):
    dataset, run = material()
    ids = dataset["query_id"]
    dataset = dataset.select_columns(["query", "positive"]).add_column("query_id", list(ids))
    dataset = dataset.add_column("doc_id", ["d1"] * len(ids)).add_column(
        "relevance", [1, 0] * (len(ids) // 2)
    )
    dataset = attach_difficulty(dataset, run, "recip")
    model = cross_encoder(folder)
    before = weights(model)
    loss = PointwiseCurriculumLoss(model, curriculum=LinearCurriculum(2, "step"))
    train(model, loss, dataset, arguments(tmp_path, 2))
    assert not torch.equal(weights(model), before)


def test_wrong_columns_are_refused(folder):
    model = cross_encoder(folder)
    refused("2 text columns; the dataset needs query, positive",
            lambda: PairwiseCurriculumLoss(model)([["a"], ["b"]]))  # fmt: skip
    refused("3 text columns; the dataset needs two: query and doc",
            lambda: PointwiseCurriculumLoss(model)([["a"], ["b"], ["c"]], torch.ones(1)))  # fmt: skip
    refused("num_labels=3; load it", lambda: PairwiseCurriculumLoss(cross_encoder(folder, num_labels=3)))
