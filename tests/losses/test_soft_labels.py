"""Soft-label losses against loops from the formula, against torch's own KL, and the whole loss beside the
library's."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F

from gradatim.losses import InBatchTeacher, MultiPositiveRankingLoss, SoftLabelRankingLoss, soft_label_loss
from gradatim.losses.candidates import token_keys
from gradatim.losses.soft_labels import teacher_entropy
from tiny_encoder import collate, tiny_encoder, toy_rows

SOFT = ["kl", "margin_mse", "bce"]


def loop(s, t, keep, soft, tau, p):
    """One row, written from the formula in plain floats; None where the row does not count."""
    kept = [i for i in range(len(s)) if keep[i]]
    if soft == "margin_mse":
        others = [i for i in kept if i != p]
        if p not in kept or not others:
            return None
        return sum(((s[p] - s[i]) - (t[p] - t[i]) / tau) ** 2 for i in others) / len(others)
    if len(kept) < 2:
        return None
    if soft == "kl":
        z_y, z_p = sum(math.exp(t[i] / tau) for i in kept), sum(math.exp(s[i]) for i in kept)
        y = {i: math.exp(t[i] / tau) / z_y for i in kept}
        return sum(y[i] * math.log(y[i] / (math.exp(s[i]) / z_p)) for i in kept)
    mean_s, mean_t = sum(s[i] for i in kept) / len(kept), sum(t[i] for i in kept) / len(kept)
    total = 0.0
    for i in kept:
        y = 1 / (1 + math.exp(-(t[i] - mean_t) / tau))
        p_i = 1 / (1 + math.exp(-(s[i] - mean_s)))
        total -= y * math.log(p_i) + (1 - y) * math.log(1 - p_i)
    return total / len(kept)


@pytest.mark.parametrize("soft", SOFT)
@pytest.mark.parametrize("tau", [0.5, 1, 2.0])
def test_equals_a_loop_from_the_formula(soft, tau):
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    ignore = torch.rand(8, 6, generator=generator) < 0.3
    ignore[0] = True
    ignore[1] = True
    ignore[1, 2] = False
    positive = torch.arange(8) % 6
    rows = soft_label_loss(
        scores, teacher, ignore, soft=soft, teacher_temperature=tau, positive=positive, reduction="none"
    )
    expected = [
        loop(s, t, k, soft, tau, int(p))
        for s, t, k, p in zip(scores.tolist(), teacher.tolist(), (~ignore).tolist(), positive, strict=True)
    ]
    assert expected[0] is expected[1] is None
    torch.testing.assert_close(rows, torch.tensor([e or 0.0 for e in expected], dtype=torch.float64))
    counted = [e for e in expected if e is not None]
    mean = soft_label_loss(scores, teacher, ignore, soft=soft, teacher_temperature=tau, positive=positive)
    torch.testing.assert_close(mean, torch.tensor(sum(counted) / len(counted), dtype=torch.float64))


def test_kl_is_torchs_and_zero_at_the_teacher():
    generator = torch.Generator().manual_seed(1)
    scores, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    mine = soft_label_loss(scores, teacher, teacher_temperature=0.7)
    theirs = F.kl_div(
        scores.log_softmax(1), (teacher / 0.7).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(mine, theirs)
    for soft in SOFT[:2]:
        at = soft_label_loss(teacher / 0.7 + 3, teacher, soft=soft, teacher_temperature=0.7)
        torch.testing.assert_close(at, torch.zeros_like(at))


@pytest.mark.parametrize("soft", SOFT)
def test_no_gradient_reaches_the_teacher_nor_what_is_ignored(soft):
    scores = torch.randn(3, 5, requires_grad=True, generator=torch.Generator().manual_seed(2))
    teacher = torch.zeros(3, 5, requires_grad=True)
    ignore = torch.zeros(3, 5, dtype=torch.bool)
    ignore[:, 4] = True
    with torch.no_grad():
        scores[:, 4] = torch.inf
    soft_label_loss(scores, teacher, ignore, soft=soft).backward()
    assert teacher.grad is None
    assert (scores.grad[:, 4] == 0).all()
    assert scores.grad.isfinite().all()
    assert (scores.grad[:, :4] != 0).any()


def test_entropy_by_hand():
    teacher = torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0, math.log(3), 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    keep = torch.tensor([[True, True, True, False], [True, True, False, False], [True, False, False, False]])
    expected = [1.0, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2), 0.0]
    torch.testing.assert_close(teacher_entropy(teacher, keep, 1.0), torch.tensor(expected))


# --- The sentence-transformers loss ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("model"))


def teacher_scores(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(seed))


def embeddings(batch: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(1 + n)
    ]


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("soft", SOFT)
def test_both_parts_equal_loops_over_rows(soft, in_batch):
    columns, teacher = embeddings(5, 4), teacher_scores(5, 4)
    loss = SoftLabelRankingLoss(
        None, scale=8.0, soft=soft, soft_weight=0.3, hard_weight=2.0, in_batch_negatives=in_batch
    )
    found = loss.compute_loss_from_embeddings(columns, teacher)
    unit = [F.normalize(c.detach(), dim=1) for c in columns]
    hard, soft_sum = 0.0, 0.0
    for i in range(5):
        own = [8.0 * float(unit[0][i] @ d[i]) for d in unit[1:]]
        everything = [8.0 * float(unit[0][i] @ d[j]) for d in unit[1:] for j in range(5)]
        rivals = everything if in_batch else own
        hard += math.log(sum(math.exp(x) for x in rivals)) - own[0]
        soft_sum += loop(own, teacher[i].tolist(), [True] * 4, soft, 0.5, 0)
    torch.testing.assert_close(found["hard"], torch.tensor(2.0 * hard / 5, dtype=torch.float64))
    torch.testing.assert_close(
        found["soft"], torch.tensor(0.3 * soft_sum / 5, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_hard_part_is_the_multi_positive_loss_and_soft_part_the_librarys_distillation(model):
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
    from sentence_transformers.util import pairwise_cos_sim

    columns, teacher = embeddings(6, 3, dtype=torch.float32), teacher_scores(6, 3)
    labels = torch.tensor([[1, 0, 0]] * 6)
    loss = SoftLabelRankingLoss(None, scale=20.0, teacher_temperature=0.5)
    parts = loss.compute_loss_from_embeddings(columns, teacher)
    plain = MultiPositiveRankingLoss(None, objective="infonce").compute_loss_from_embeddings(columns, labels)
    torch.testing.assert_close(parts["hard"], plain)
    stock = DistillKLDivLoss(
        None, similarity_fct=pairwise_cos_sim, student_temperature=1 / 20, teacher_temperature=0.5
    )
    # The library multiplies by the square of the student's temperature.
    theirs = stock.compute_loss_from_embeddings(columns, teacher) * 20**2
    torch.testing.assert_close(parts["soft"], theirs)


@pytest.mark.parametrize("soft", SOFT)
@pytest.mark.parametrize("floor", [True, False])
def test_gradients_agree_with_finite_differences(soft, floor):
    columns, teacher = embeddings(3, 3), teacher_scores(3, 3).double()
    loss = SoftLabelRankingLoss(None, scale=4.0, soft=soft, label_floor=floor)
    assert torch.autograd.gradcheck(
        lambda *c: tuple(loss.compute_loss_from_embeddings(list(c), teacher).values()), columns
    )


def test_mask_targets_several_positives_and_padding():
    columns = embeddings(3, 4)
    teacher = teacher_scores(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, -1], [1, 0, -1, -1]])
    loss = SoftLabelRankingLoss(None, hard_targets="mask", objective="lse-pair")
    parts = loss.compute_loss_from_embeddings(columns, torch.stack([teacher, mask.float()], dim=1))
    plain = MultiPositiveRankingLoss(None, objective="lse-pair").compute_loss_from_embeddings(columns, mask)
    torch.testing.assert_close(parts["hard"], plain)
    unit = [F.normalize(c.detach(), dim=1) for c in columns]
    own = [[20.0 * float(unit[0][i] @ d[i]) for d in unit[1:]] for i in range(3)]
    expected = sum(loop(own[i], teacher[i].tolist(), (mask[i] >= 0).tolist(), "kl", 0.5, 0) for i in range(3))
    torch.testing.assert_close(
        parts["soft"], torch.tensor(expected / 3, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_argmax_takes_the_teachers_best_and_the_floor_lifts_the_annotated_one():
    columns, teacher = embeddings(4, 3), teacher_scores(4, 3)
    best = teacher.argmax(dim=1)
    labels = F.one_hot(best, 3)
    loss = SoftLabelRankingLoss(None, hard_targets="argmax", soft_weight=0)
    plain = MultiPositiveRankingLoss(None, objective="infonce").compute_loss_from_embeddings(columns, labels)
    assert list(loss.compute_loss_from_embeddings(columns, teacher)) == ["hard"]
    torch.testing.assert_close(loss.compute_loss_from_embeddings(columns, teacher)["hard"], plain)
    floored = teacher.clone()
    floored[:, 0] = teacher.amax(dim=1)
    one = SoftLabelRankingLoss(None, label_floor=True, hard_weight=0).compute_loss_from_embeddings(
        columns, teacher
    )
    two = SoftLabelRankingLoss(None, hard_weight=0).compute_loss_from_embeddings(columns, floored)
    assert list(one) == ["soft"]
    torch.testing.assert_close(one["soft"], two["soft"])
    assert not torch.isclose(
        one["soft"],
        SoftLabelRankingLoss(None, hard_weight=0).compute_loss_from_embeddings(columns, teacher)["soft"],
    )


@pytest.mark.parametrize("soft", SOFT)
def test_in_batch_teacher_covers_every_passage_once(soft):
    batch, n = 4, 3
    columns = embeddings(batch, n)
    query_keys = torch.arange(batch) + 100
    passage_keys = torch.arange(batch * n).reshape(batch, n) + 1000
    passage_keys[2, 1] = passage_keys[0, 0]  # row 0's positive comes along with row 2
    passage_keys[3, 0] = passage_keys[1, 2]  # row 3's positive stands further left, in row 1
    with torch.no_grad():
        columns[2][2] = columns[1][0]
        columns[1][3] = columns[3][1]
    matrix = teacher_scores(batch, 2000, seed=3)

    def teacher(queries, passages):
        return matrix[queries - 100][:, passages]

    loss = SoftLabelRankingLoss(None, scale=6.0, soft=soft, in_batch_teacher=teacher)
    parts = loss.compute_loss_from_embeddings(columns, teacher_scores(batch, n), (query_keys, passage_keys))
    unit = [F.normalize(c.detach(), dim=1) for c in columns]
    total = 0.0
    for i in range(batch):
        s, t, seen = [], [], set()
        order = [(i, 0), *[(j, k) for j in range(batch) for k in range(n) if (j, k) != (i, 0)]]
        for j, k in order:
            key = int(passage_keys[j, k])
            if key in seen:
                continue
            seen.add(key)
            s.append(6.0 * float(unit[0][i] @ unit[1 + k][j]))
            t.append(float(matrix[i, key]))
        total += loop(s, t, [True] * len(s), soft, 0.5, 0)
    torch.testing.assert_close(
        parts["soft"], torch.tensor(total / batch, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="asked by token keys"):
        loss.compute_loss_from_embeddings(columns, teacher_scores(batch, n))


def test_in_batch_teacher_finds_texts_by_their_tokens(model):
    columns = toy_rows(5, 3)
    features, _ = collate(model, columns)
    passages = [text for i in range(1, 4) for text in columns[f"doc_{i}"]]
    matrix = teacher_scores(5, len(passages))
    teacher = InBatchTeacher.of_texts(model.preprocess, columns["query"], passages, matrix, batch_size=2)
    loss = SoftLabelRankingLoss(model, in_batch_teacher=teacher)
    keys = token_keys(features)
    found = teacher(keys[0], torch.stack(keys[1:], dim=1).flatten())
    expected = torch.stack([matrix[:, i::5] for i in range(5)], dim=1).flatten(1)
    distinct = {text: i for i, text in enumerate(passages)}
    for i in range(5):
        for c, (row, column) in enumerate((r, k) for r in range(5) for k in range(3)):
            text = columns[f"doc_{column + 1}"][row]
            if passages.count(text) == 1:
                assert found[i, c] == matrix[i, distinct[text]] == expected[i, c]
    assert sum(loss(features, teacher_scores(5, 3)).values()).isfinite()
    factors = InBatchTeacher(keys[0], torch.stack(keys[1:]).flatten(), (torch.eye(5), matrix.T))
    torch.testing.assert_close(factors(keys[0], torch.stack(keys[1:]).flatten()), matrix)
    with pytest.raises(ValueError, match="query 0 of the batch is unknown"):
        teacher(torch.tensor([5]), keys[1])
    with pytest.raises(ValueError, match="2 queries and 3 passages"):
        InBatchTeacher(torch.arange(3), torch.arange(3), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings(dtype):
    columns, teacher = embeddings(4, 3, dtype=dtype), teacher_scores(4, 3)
    loss = SoftLabelRankingLoss(None, scale=100.0)
    parts = loss.compute_loss_from_embeddings(columns, teacher.to(dtype))
    wide = [c.detach().float() for c in columns]
    expected = loss.compute_loss_from_embeddings(wide, teacher.to(dtype).float())
    for name, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])
    sum(parts.values()).backward()
    assert all(c.grad.isfinite().all() for c in columns)


def test_a_flat_teacher_warns_once_and_is_reported():
    columns = embeddings(4, 3)
    loss = SoftLabelRankingLoss(None, teacher_temperature=1)
    with pytest.warns(UserWarning, match="nearly flat"):
        loss.compute_loss_from_embeddings(
            columns, torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.compute_loss_from_embeddings(columns, torch.zeros(4, 3))
    assert loss.entropy == pytest.approx(1.0)
    sharp = 5 * F.one_hot(torch.stack([(F.normalize(columns[0], dim=1) * F.normalize(c, dim=1)).sum(1)
                                       for c in columns[1:]], dim=1).argmax(1), 3)  # fmt: skip
    loss.compute_loss_from_embeddings(columns, sharp.float())
    assert loss.agreement == 1.0
    assert loss.entropy < 0.2
    assert "entropy" not in loss.get_config_dict()
    assert loss.get_config_dict()["soft"] == "kl"


def test_wrong_labels_are_refused():
    columns = embeddings(4, 3)
    loss = SoftLabelRankingLoss(None)
    with pytest.raises(ValueError, match="no labels"):
        loss.compute_loss_from_embeddings(columns, None)
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*need \(4, 3\)"):
        loss.compute_loss_from_embeddings(columns, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"'mask' need \(4, 2, 3\)"):
        SoftLabelRankingLoss(None, hard_targets="mask").compute_loss_from_embeddings(
            columns, torch.zeros(4, 3)
        )
    bad = torch.zeros(4, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="row 2: teacher scores are not finite"):
        loss.compute_loss_from_embeddings(columns, bad)


BAD_OPTIONS = """
import torch
from gradatim.losses import SoftLabelRankingLoss, soft_label_loss
s = torch.zeros(2, 3)
for call, word in [
    (lambda: SoftLabelRankingLoss(None, soft="mse"), "soft='mse'"),
    (lambda: SoftLabelRankingLoss(None, hard_targets="last"), "hard_targets='last'"),
    (lambda: SoftLabelRankingLoss(None, teacher_temperature=0.0), "teacher_temperature=0.0"),
    (lambda: SoftLabelRankingLoss(None, hard_weight=0.0, soft_weight=0.0), "not both 0"),
    (lambda: SoftLabelRankingLoss(None, scale=0.0), "scale=0.0"),
    (lambda: soft_label_loss(s, s, soft="mse"), "soft='mse'"),
    (lambda: soft_label_loss(s, s, teacher_temperature=-1.0), "teacher_temperature=-1.0"),
    (lambda: soft_label_loss(s, s[:1]), "teacher has shape (1, 3)"),
    (lambda: soft_label_loss(s, s, s[:1] > 0), "ignore_mask has shape (1, 3)"),
    (lambda: soft_label_loss(s, s + torch.inf), "row 0: teacher scores are not finite"),
    (lambda: soft_label_loss(s + torch.nan, s), "row 0: scores are not finite"),
    (lambda: soft_label_loss(s, s, reduction="max"), "reduction='max'"),
]:
    try:
        call()
    except ValueError as error:
        assert word in str(error), (word, error)
    else:
        raise AssertionError(word)
print("refused")
"""


def test_bad_options_are_refused():
    done = subprocess.run([sys.executable, "-c", BAD_OPTIONS], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "refused", done.stderr[-2000:]


def test_it_trains_inside_the_librarys_trainer(model, tmp_path_factory):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    student = tiny_encoder(tmp_path_factory.mktemp("student"), seed=3)
    columns = toy_rows(24, 3)
    columns["label"] = teacher_scores(24, 3).mul(2).tolist()
    before = student[0].model.embeddings.word_embeddings.weight.detach().clone()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("out")),
        max_steps=6,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    loss = SoftLabelRankingLoss(student)
    trainer = SentenceTransformerTrainer(student, arguments, Dataset.from_dict(columns), loss=loss)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"hard", "soft"} <= set(logged[-1])
    assert not torch.equal(before, student[0].model.embeddings.word_embeddings.weight)
    assert math.isfinite(loss.agreement)
