"""The sentence-transformers loss against the functional one on a matrix written out by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score

from gradatim.losses import OBJECTIVES, MultiPositiveRankingLoss, multi_positive_loss
from gradatim.losses.candidates import keyed_lots, mix, token_keys
from tiny_encoder import collate, tiny_encoder, toy_rows

B, N, D = 5, 4, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def embeddings(seed=0, batch=B, n=N, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, D, generator=g, dtype=dtype, requires_grad=True) for _ in range(1 + n)]


def random_labels(seed=0, batch=B, n=N):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 2, (batch, n), generator=g)
    labels[:, 2], labels[:, 0] = 1, 0  # a positive that is not in the first column
    return labels


def by_hand(columns, labels, similarity=cos_sim, scale=20.0, in_batch=True, **options):
    """Loops over every (query, passage) pair, then the functional loss on the full matrix."""
    queries, docs = columns[0], columns[1:]
    batch, n = labels.shape
    scores = torch.zeros(batch, batch * n, dtype=queries.dtype)
    positive, ignore = torch.zeros(2, batch, batch * n, dtype=torch.bool)
    for i in range(batch):
        for k in range(batch):
            for j in range(n):
                column = k * n + j
                scores[i, column] = similarity(queries[i : i + 1], docs[j][k : k + 1])[0, 0] * scale
                positive[i, column] = bool(i == k and labels[k, j] == 1)
                ignore[i, column] = bool(labels[k, j] == -1 or (not in_batch and i != k))
    return multi_positive_loss(scores, positive, ignore, **options)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "rand1-lh"])
def test_value_and_gradient_equal_the_full_matrix(objective, in_batch):
    labels = random_labels()
    ours, theirs = embeddings(), embeddings()
    loss = MultiPositiveRankingLoss(None, objective=objective, in_batch_negatives=in_batch)
    value = loss.compute_loss_from_embeddings(ours, labels)
    expected = by_hand(theirs, labels, in_batch=in_batch, objective=objective)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def manhattan(a, b):
    return -(a[:, None] - b[None]).abs().sum(-1)


@pytest.mark.parametrize(("similarity", "scale"), [(dot_score, 1.0), (manhattan, 0.5), (cos_sim, 5.0)])
def test_other_similarities_and_scales(similarity, scale):
    labels = random_labels(1)
    columns = embeddings(1)
    loss = MultiPositiveRankingLoss(None, similarity_fct=similarity, scale=scale)
    torch.testing.assert_close(
        loss.compute_loss_from_embeddings(columns, labels), by_hand(columns, labels, similarity, scale)
    )


def test_options_reach_the_functional_loss():
    labels, columns = random_labels(2), embeddings(2)
    for options in (
        {"objective": "joint-lh", "normalize": False},
        {"objective": "lse-pair", "positive_selector": "min", "negative_selector": "max"},
    ):
        value = MultiPositiveRankingLoss(None, **options).compute_loss_from_embeddings(columns, labels)
        torch.testing.assert_close(value, by_hand(columns, labels, **options))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_positive_in_the_first_column_is_the_library_loss(model, objective):
    columns = toy_rows(6, 3, seed=3)
    columns["label"] = [[1, 0, 0]] * 6
    features, labels = collate(model, columns)
    theirs = MultipleNegativesRankingLoss(model)([dict(f) for f in features], labels)
    ours = MultiPositiveRankingLoss(model, objective=objective, mask_duplicates=False)(features, labels)
    torch.testing.assert_close(ours, theirs)


def test_half_precision_embeddings_are_scored_in_float32():
    labels, columns = random_labels(), [e.detach().half() for e in embeddings()]
    value = MultiPositiveRankingLoss(None).compute_loss_from_embeddings(columns, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, by_hand([c.float() for c in columns], labels))


# Duplicates -------------------------------------------------------------------------------------------


def masked_by_hand(columns, model, ranking):
    """Duplicates found by comparing texts; everything else as above."""
    features, labels = collate(model, columns)
    vectors = [model(dict(f))["sentence_embedding"] for f in features]
    batch, n = labels.shape
    text = [[columns[f"doc_{j + 1}"][k] for j in range(n)] for k in range(batch)]
    scores = torch.cat([cos_sim(vectors[0], vectors[1 + j]) * 20 for j in range(n)], dim=1)
    scores = scores.reshape(batch, n, batch).transpose(1, 2).reshape(batch, batch * n)
    positive, ignore = torch.zeros(2, batch, batch * n, dtype=torch.bool)
    spared = 0
    for i in range(batch):
        twins = [k for k in range(batch) if columns["query"][k] == columns["query"][i]]
        known = {text[k][j] for k in twins for j in range(n) if labels[k, j] == 1}
        for k in range(batch):
            for j in range(n):
                positive[i, k * n + j] = bool(i == k and labels[k, j] == 1)
                ignore[i, k * n + j] = bool(labels[k, j] == -1)
                if text[k][j] in known and not positive[i, k * n + j] and labels[k, j] != -1:
                    ignore[i, k * n + j] = True
                    spared += 1
    value = ranking(features, labels)
    return value, multi_positive_loss(scores, positive, ignore), spared


def test_a_positive_met_again_in_the_batch_is_no_negative(model):
    columns = toy_rows(5, 3, seed=4)
    columns["label"] = [[1, 1, 0], [1, 0, 0], [1, 0, -1], [1, 0, 0], [1, 0, 0]]
    columns["doc_1"][1] = columns["doc_2"][0]  # positive of both 0 and 1
    columns["doc_3"][3] = columns["doc_1"][2]  # negative of 3, positive of 2
    columns["doc_2"][4] = columns["doc_1"][4]  # contradicts itself: the positive label wins
    columns["query"][3] = columns["query"][0]  # the same query twice shares its positives
    loss = MultiPositiveRankingLoss(model)
    value, expected, spared = masked_by_hand(columns, model, loss)
    torch.testing.assert_close(value, expected)
    assert loss.masked_duplicates == spared > 4
    features, labels = collate(model, columns)
    unmasked = MultiPositiveRankingLoss(model, mask_duplicates=False)
    assert (unmasked(features, labels) - value).abs() > 1e-3
    assert unmasked.masked_duplicates == 0


def test_keys_ignore_padding_and_tell_texts_apart(model):
    texts = ["sum of the matrix", "matrix of the sum", "sum", "sum of the matrix"]
    narrow = dict(model.preprocess(texts))
    wide = {k: torch.nn.functional.pad(v, (0, 5)) for k, v in narrow.items() if torch.is_tensor(v)}
    left = {k: torch.nn.functional.pad(v, (5, 0)) for k, v in narrow.items() if torch.is_tensor(v)}
    keys, other, shifted = token_keys([narrow, wide, left])
    assert torch.equal(keys, other)
    assert torch.equal(keys, shifted)
    assert keys[0] == keys[3]
    assert keys[:3].unique().numel() == 3
    assert token_keys([{"sentence_embedding": torch.zeros(2, 3)}]) is None


def test_mix_is_splitmix64():
    def reference(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    for value in (1, 12345, 2**63 - 1, 0x9E3779B97F4A7C15 - 2**64):
        assert int(mix(torch.tensor(value))) % 2**64 == reference(value % 2**64)


# Draws ------------------------------------------------------------------------------------------------


def test_lots_are_uniform_and_follow_from_seed_epoch_and_key():
    keys = torch.arange(4000)
    lots = keyed_lots(0, 0, keys, 4)
    assert (lots >= 0).all()
    assert (lots < 1).all()
    assert abs(lots.mean() - 0.5) < 0.01
    winners = lots.argmax(1).bincount(minlength=4) / 4000
    assert (winners - 0.25).abs().max() < 0.03
    torch.testing.assert_close(keyed_lots(0, 0, keys[[7]], 4)[0], lots[7], rtol=0, atol=0)
    for other in (keyed_lots(1, 0, keys, 4), keyed_lots(0, 1, keys, 4)):
        assert abs(torch.corrcoef(torch.stack([lots.flatten(), other.flatten()]))[0, 1]) < 0.03


def test_rand1_draw_depends_on_the_query_not_on_its_place(model):
    columns = toy_rows(4, 4, seed=5)
    columns["label"] = [[1, 1, 1, 0]] * 4
    order = [2, 0, 3, 1]
    shuffled = {name: [values[i] for i in order] for name, values in columns.items()}
    loss = MultiPositiveRankingLoss(model, objective="rand1-lh")
    values = []
    for epoch in range(6):
        loss.set_epoch(epoch)
        one, two = loss(*collate(model, columns)), loss(*collate(model, shuffled))
        torch.testing.assert_close(one, two)
        values.append(round(one.item(), 6))
    assert len(set(values)) > 2
    loss.set_epoch(0)
    assert round(loss(*collate(model, columns)).item(), 6) == values[0]


def test_rand1_without_epochs_draws_anew_each_time():
    labels = torch.tensor([[1, 1, 1, 0]] * B)
    loss = MultiPositiveRankingLoss(None, objective="rand1-lh")
    values = {loss.compute_loss_from_embeddings(embeddings(), labels).item() for _ in range(5)}
    assert len(values) > 1


# Rows that cannot count, and bad input -----------------------------------------------------------------


def test_rows_without_a_positive_are_left_out_with_one_warning():
    labels, columns = random_labels(), embeddings()
    labels[1] = 0
    loss = MultiPositiveRankingLoss(None)
    with pytest.warns(UserWarning, match="1 of 5 queries have no positive and 0 no negative"):
        value = loss.compute_loss_from_embeddings(columns, labels)
    torch.testing.assert_close(value, by_hand(columns, labels))
    value.backward()
    assert (columns[0].grad[1] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.compute_loss_from_embeddings(columns, labels)


def test_a_batch_of_one_uses_its_own_negatives():
    labels, columns = torch.tensor([[1, 0, 1, -1]]), embeddings(batch=1)
    value = MultiPositiveRankingLoss(None).compute_loss_from_embeddings(columns, labels)
    torch.testing.assert_close(value, by_hand(columns, labels))


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (None, {}, ValueError, "no labels"),
        (torch.ones(B), {}, ValueError, "shape"),
        (torch.ones(B, N + 1), {}, ValueError, "shape"),
        (torch.full((B, N), 3), {}, ValueError, "label 3"),
        (torch.full((B, N), 0.5), {}, ValueError, "label 0.5"),
        (torch.zeros(B, N), {}, RuntimeError, "none of the 5 queries of the batch has a positive"),
        (torch.ones(B, N), {"in_batch_negatives": False}, ValueError, "no negative in the whole batch"),
    ],
)
def test_bad_labels_are_refused(labels, options, error, message):
    with pytest.raises(error, match=message):
        MultiPositiveRankingLoss(None, **options).compute_loss_from_embeddings(embeddings(), labels)


def test_bad_options_and_embeddings_are_refused():
    with pytest.raises(ValueError, match="scale=0"):
        MultiPositiveRankingLoss(None, scale=0.0)
    with pytest.raises(ValueError, match="choose one of infonce"):
        MultiPositiveRankingLoss(None, objective="softmax")
    with pytest.raises(ValueError, match="1 passage column"):
        MultiPositiveRankingLoss(None).compute_loss_from_embeddings(embeddings(n=1), torch.ones(B, 1))
    broken = embeddings()
    with torch.no_grad():
        broken[0][2, 0] = torch.nan
    with pytest.raises(ValueError, match="row 2: scores are not finite"):
        MultiPositiveRankingLoss(None).compute_loss_from_embeddings(broken, random_labels())


def test_config_names_every_option():
    config = MultiPositiveRankingLoss(None, objective="joint", scale=5.0, seed=3).get_config_dict()
    assert config == {
        "objective": "joint-lh",
        "scale": 5.0,
        "similarity_fct": "cos_sim",
        "normalize": True,
        "positive_selector": "all",
        "negative_selector": "all",
        "in_batch_negatives": True,
        "mask_duplicates": True,
        "gather_across_devices": False,
        "seed": 3,
    }
    assert "2602.12727" in MultiPositiveRankingLoss(None).citation


# The real trainer -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the trainer's loader on a CPU machine
def test_trains_with_the_library_trainer_and_prompts(tmp_path):
    from datasets import Dataset

    model = tiny_encoder(tmp_path, seed=1)
    columns = toy_rows(24, 4, seed=6)
    loss = MultiPositiveRankingLoss(model, objective="expected-rand1-lh")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=8,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        prompts={"query": "given the ", "doc_1": "returns "},
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert batch["label"].tolist() == columns["label"][:3]
    prompted = model.preprocess(["sum"], prompt="given the ")["input_ids"][0]
    assert batch["query_input_ids"][0, : len(prompted) - 2].tolist() == prompted[:-2].tolist()

    def whole_loss():
        with torch.no_grad():
            rows = trainer.data_collator([trainer.train_dataset[i] for i in range(24)])
            return loss(*trainer.collect_features(rows)).item()

    before = whole_loss()
    trainer.train()
    assert whole_loss() < 0.6 * before
