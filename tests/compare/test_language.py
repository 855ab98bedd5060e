"""Language models on a text: fair sizes and budgets, honest units, count models by hand, code that runs."""

from __future__ import annotations

import importlib
import math
from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Results, fingerprint
from gradatim.compare import DataError, language, language_arms
from gradatim.compare.comparison import Winner
from gradatim.compare.language_arms import (
    ARMS,
    COUNTED,
    MODELS,
    Shape,
    build,
    loss_of,
    make_optimizer,
    parameter_count,
    update_flops,
)
from gradatim.compare.language_code import save_model, winner_code
from gradatim.compare.language_counts import count_model_losses
from gradatim.compare.language_source import language_digest, load, tokenizer_of
from gradatim.optim import MultiFrequency

TINY = {"steps": 4, "batch": 2, "context": 12, "rates": [3e-3]}
SHAPE = Shape(vocab_size=40, width=16, layers=1, heads=2, length=13)
NETWORKS = tuple(MODELS)


@pytest.fixture(autouse=True)
def _tiny_size(monkeypatch):
    monkeypatch.setitem(language.SIZES, "tiny", (16, 1, 2))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text with structure, an accent (2 bytes) and a character of 3 bytes."""
    rng = np.random.default_rng(0)
    words = ["river", "stone", "café", "engine", "世界", "cloud", "paper"]
    lines = [" ".join(rng.choice(words, 6)) + "." for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def scale_of(study):
    return study.profiles["compare"].scale


@pytest.mark.parametrize("arm", NETWORKS)
def test_every_network_has_the_transformers_number_of_parameters(arm):
    for shape in (SHAPE, Shape(300, 64, 2, 4, 65)):
        target = parameter_count("transformer", shape)
        assert parameter_count(arm, shape) == sum(p.numel() for p in build(arm, shape, 0).parameters())
        # One step of the size that moves is at most this coarse.
        assert parameter_count(arm, shape) == pytest.approx(target, rel=0.03)


def test_the_energy_models_differ_by_recipe_and_cost_several_updates():
    one, two = (build(arm, SHAPE, 0).config for arm in ("ebt-s1", "ebt-s2"))
    assert (one.num_steps, one.loss_on, one.replay_capacity) == (2, "all", 0)
    assert (two.num_steps_range, two.loss_on, two.truncate) == ([2, 3], "last", True)
    assert two.replay_capacity > 0
    plain = update_flops("transformer", SHAPE, 2)
    assert 4 < update_flops("ebt-s1", SHAPE, 2) / plain < 8
    assert 4 < update_flops("ebt-s2", SHAPE, 2) / plain < 10
    assert 0.5 < update_flops("lstm", SHAPE, 2) / plain < 2


def test_counted_flops_are_those_of_the_layers():
    # 6 times the weights that meet every token, plus attention's two products, forward and twice backward.
    B, T, D, V = 3, SHAPE.length, SHAPE.width, SHAPE.vocab_size
    model = build("transformer", SHAPE, 0)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    expected = 6 * B * T * weights + 3 * (2 * 2 * B * T * T * D)
    found = update_flops("transformer", SHAPE, B)
    # Rotary tables are a small product, made once.
    assert found == pytest.approx(expected, rel=0.02)
    assert weights == 4 * D * D + 3 * D * model.config.intermediate_size + D * V


@pytest.mark.parametrize("arm", NETWORKS)
def test_a_seed_is_a_start_and_training_learns(arm):
    a, b, c = (build(arm, SHAPE, seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    weights = [dict(m.named_parameters()) for m in (a, c)]
    assert any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    ids = torch.arange(13).repeat(4, 1) % 5 + 1
    loss, optimizer = loss_of(a, 0), make_optimizer(a, 3e-3)
    a.train()
    values = []
    for _ in range(30):
        value = loss(a, ids)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert np.mean(values[-3:]) < 0.75 * values[0]
    assert isinstance(optimizer, MultiFrequency) == (arm == "hope")


def test_hopes_slow_levels_wait_for_their_clock():
    model = build("hope", SHAPE, 0)
    optimizer = make_optimizer(model, 1e-2)
    periods = sorted({group["period"] for group in optimizer.param_groups})
    assert periods[0] == 1
    assert periods[-1] > 1
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in model.parameters()}
    before = [p.detach().clone() for p in optimizer.param_groups[-1]["params"]]
    model.train()
    loss_of(model, 0)(model, torch.ones(1, 13, dtype=torch.int64)).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.param_groups[-1]["params"], strict=True))


def test_s2_replays_from_its_second_batch_on():
    model = build("ebt-s2", SHAPE, 0).train()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    loss = loss_of(model, 0)
    for _ in range(2):
        loss(model, torch.ones(4, 13, dtype=torch.int64))
    assert seen == [4, 6]


def by_definition(train, before, token, V, k):
    """p_k(token | the last k of `before`), Witten and Bell's formula written out."""
    if k < 0:
        return 1.0 / V
    context = before[len(before) - k :]
    counts = Counter(train[i] for i in range(k, len(train)) if train[i - k : i] == context)
    below = by_definition(train, before, token, V, k - 1)
    if not counts:
        return below
    return (counts[token] + len(counts) * below) / (sum(counts.values()) + len(counts))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_count_models_follow_their_formula(order):
    g = torch.Generator().manual_seed(0)
    V = 4
    train, windows = torch.randint(V, (50,), generator=g), torch.randint(V, (4, 7), generator=g)
    found = count_model_losses(train, windows, V, order)
    assert found.shape == (4, 6)
    for row, losses in zip(windows.tolist(), found, strict=True):
        for i in range(1, 7):
            p = by_definition(train.tolist(), row[:i], row[i], V, min(order, i))
            assert losses[i - 1] == pytest.approx(-math.log(p), rel=1e-12)
    # A distribution: over all tokens that may come last, the probabilities add up to one.
    ends = torch.cat([windows[:1, :-1].expand(V, -1), torch.arange(V)[:, None]], dim=1)
    last = count_model_losses(train, ends, V, order)[:, -1]
    assert np.exp(-last).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_tokens_are_the_text_and_the_tokenizer_gives_them(text, tokens):
    study = language.comparison(text, ["frequencies"], tokens=tokens, **TINY)
    data = load(scale_of(study))
    whole = text.read_text(encoding="utf-8")
    assert sum(data.characters.values()) == len(whole)
    assert sum(data.bytes.values()) == len(whole.encode())
    assert sum(len(p) for p in data.parts.values()) == (
        len(whole) if tokens == "characters" else len(whole.encode())
    )
    tokenizer = tokenizer_of(scale_of(study))
    ids = torch.tensor(tokenizer(whole)["input_ids"])
    assert torch.equal(ids, torch.cat(list(data.parts.values())))
    assert tokenizer.decode(ids) == whole
    assert data.vocab_size == (256 if tokens == "bytes" else len(set(whole)) + 1)


def test_a_tokenizer_folder_gives_its_own_tokens(text, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator([text.read_text()], trainers.BpeTrainer(vocab_size=60, special_tokens=["?"]))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(tmp_path / "bpe")
    study = language.comparison(text, ["frequencies"], tokenizer=tmp_path / "bpe", **TINY)
    data = load(scale_of(study))
    assert data.vocab_size == inner.get_vocab_size()
    assert len(data.parts["test"]) < data.characters["test"]
    nats = 1.5
    scores = language._scores(np.full((2, 3), nats), data, "x")
    assert scores["nats/char x"] == pytest.approx(nats * len(data.parts["test"]) / data.characters["test"])
    per_byte = len(data.parts["test"]) / data.bytes["test"]
    assert scores["bits/byte x"] == pytest.approx(nats / math.log(2) * per_byte)
    assert scores["perplexity x"] == pytest.approx(math.exp(nats))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no tokenizer"):
        language.comparison(text, tokenizer=tmp_path / "empty", **TINY)


def test_a_trial_spends_the_transformers_compute_and_then_its_steps(text):
    study = language.comparison(text, ["transformer", "ebt-s1", "lstm"], **{**TINY, "steps": 24})
    scale = scale_of(study)
    found = {arm.name: language.trial(arm, 0, scale).metrics for arm in study.arms}
    budget = found["transformer"]["TFLOPs at equal compute"]
    for arm in ("ebt-s1", "lstm"):
        assert found[arm]["TFLOPs at equal compute"] == pytest.approx(budget, rel=0.13)
        assert found[arm]["updates at equal steps"] == 24
    assert found["ebt-s1"]["updates at equal compute"] in (4, 5, 6)
    assert found["ebt-s1"]["TFLOPs at equal steps"] > 4 * budget
    assert found["transformer"]["updates at equal compute"] == 24
    for name in ("nats/char", "bits/byte"):
        assert (
            found["transformer"][f"{name} at equal compute"] == found["transformer"][f"{name} at equal steps"]
        )
    assert found["n-gram"]["nats/char at equal steps"] < found["frequencies"]["nats/char at equal steps"]
    again = language.trial(ARMS["lstm"], 0, scale).metrics
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in found["lstm"].items() if "seconds" not in k
    }
    assert language.trial(ARMS["lstm"], 1, scale).metrics["nats/char at equal steps"] != pytest.approx(
        again["nats/char at equal steps"], abs=1e-9
    )


def test_the_loss_is_that_of_the_models_own_labels(text):
    scale = scale_of(language.comparison(text, ["transformer"], **TINY))
    model, data = build("transformer", language.shape_of(scale), 0).eval(), load(scale)
    windows = data.chunks("test", 13, language.MOST_WINDOWS)
    with torch.no_grad():
        expected = float(model(input_ids=windows, labels=windows).loss)
    assert language._losses(model, data, "test", scale).mean() == pytest.approx(expected, rel=1e-5)


def test_the_rate_is_chosen_on_the_validation_part(text, monkeypatch):
    study = language.comparison(text, ["transformer"], **{**TINY, "rates": [1e-9, 3e-2]})
    seen = []
    original = language._losses

    def spy(model, data, part, scale):
        seen.append(part)
        return original(model, data, part, scale)

    monkeypatch.setattr(language, "_losses", spy)
    outcome = language.trial(ARMS["transformer"], 0, scale_of(study))
    assert outcome.metrics["chosen rate"] == 3e-2
    assert seen == ["valid", "valid", "test", "test"]


def test_rates_that_overflow_are_passed_over(text, monkeypatch):
    study = language.comparison(text, ["transformer"], **{**TINY, "rates": [1.0, 1e-3]})
    original = language._train

    def diverging(arm, seed, scale, rate, updates):
        if rate == 1.0:
            raise FloatingPointError("the loss is nan at step 2")
        return original(arm, seed, scale, rate, updates)

    monkeypatch.setattr(language, "_train", diverging)
    assert language.trial(ARMS["transformer"], 0, scale_of(study)).metrics["chosen rate"] == 1e-3
    alone = {**scale_of(study), "rates": [1.0]}
    with pytest.raises(FloatingPointError, match="at every rate"):
        language.trial(ARMS["transformer"], 0, alone)


def test_all_arms_of_a_seed_read_the_same_windows(text):
    scale = scale_of(language.comparison(text, ["transformer"], **TINY))
    data = load(scale)
    first, longer, other = (list(language._Windows(data, 2, 13, n, s)) for n, s in ((3, 0), (5, 0), (3, 1)))
    assert all(torch.equal(a, b) for a, b in zip(first, longer, strict=False))
    assert not torch.equal(first[0], other[0])


def test_the_study_judges_what_is_asked_and_has_its_controls(text):
    study = language.comparison(text, ["transformer", "lstm"], **TINY)
    assert [a.name for a in study.arms] == ["transformer", "lstm", "n-gram", "frequencies"]
    (claim,) = study.claims
    assert claim.effect.metric == "nats/char at equal compute"
    assert claim.control.effect.baseline == "n-gram"
    other = language.comparison(text, ["transformer", "lstm"], judge="steps", **TINY)
    assert other.claims[0].effect.metric == "nats/char at equal steps"
    assert set(language.TASK.default) == set(NETWORKS)


def test_the_digest_knows_the_text_and_how_it_is_read(text, tmp_path):
    scale = scale_of(language.comparison(text, ["transformer"], **TINY))
    digests = {language_digest(s) for s in (
        scale, {**scale, "tokens": "bytes"}, {**scale, "max_characters": 3000},
    )}  # fmt: skip
    assert len(digests) == 3
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    assert language_digest({**scale, "data": str(copy)}) == language_digest(scale)
    copy = tmp_path / "changed.txt"
    copy.write_text(text.read_text() + "!")
    assert language_digest({**scale, "data": str(copy)}) != language_digest(scale)


def test_a_long_text_is_cut_and_said_so(text):
    study = language.comparison(text, ["transformer"], max_characters=2000, **TINY)
    assert "first 2,000 of" in study.notes
    assert sum(load(scale_of(study)).characters.values()) == 2000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "huge"}, '--size "huge" is unknown; use tiny'),
        ({"judge": "time"}, "--judge"),
        ({"tokens": "words"}, '--tokens "words" is unknown'),
        ({"tokens": "bytes", "tokenizer": "x"}, "exclude each other"),
        ({"tokenizer": "nowhere"}, "is no folder"),
        ({"context": 100_000}, "shorter --context"),
        ({"arms": ["llstm"]}, "did you mean lstm"),
    ],
)
def test_what_cannot_be_is_one_line(text, settings, message):
    with pytest.raises(DataError) as raised:
        language.comparison(text, **{**TINY, **settings})
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_text_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "short.txt").write_text("hello")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 2000)
    (tmp_path / "bad.jsonl").write_text('{"body": "no text"}\n')
    (tmp_path / "folder").mkdir()
    for name, problem in {
        "none.txt": "does not exist", "short.txt": "at least 1,000", "binary.txt": "not UTF-8",
        "bad.jsonl": 'needs {"text"', "folder": "holds no .txt files",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=name.split(".")[0]) as raised:
            language.comparison(tmp_path / name)
        assert problem in str(raised.value)


@pytest.mark.parametrize("arm", NETWORKS)
def test_the_saved_winner_is_used_by_the_printed_lines(text, tmp_path, arm, capsys):
    scale = scale_of(language.comparison(text, [arm], **TINY))
    won = Winner(arm, "", 0.0, {"rate": 3e-3}, 1)
    model = language.fit_winner(won, scale)
    save_model(model, scale, tmp_path / "won")
    namespace: dict = {}
    with torch.random.fork_rng():
        exec(compile(winner_code(won, scale, tmp_path / "won"), "code", "exec"), namespace)  # noqa: S102
    ids = load(scale).parts["test"][None, :12]
    with torch.no_grad():
        kept, given = (m.eval()(input_ids=ids).logits for m in (namespace["model"], model))
    torch.testing.assert_close(kept, given, rtol=1e-4, atol=1e-3)
    assert len(capsys.readouterr().out) > 4
    assert namespace["text"].shape[1] > namespace["start"]["input_ids"].shape[1]
    unknown = namespace["tokenizer"].unk_token_id
    assert not (namespace["start"]["input_ids"] == unknown).any()


@pytest.mark.parametrize("arm", NETWORKS)
def test_without_a_folder_the_lines_build_the_model(text, arm):
    scale = scale_of(language.comparison(text, [arm], **TINY))
    code = winner_code(Winner(arm, "", 0.0, {"rate": 3e-3}, 1), scale)
    namespace: dict = {}
    with torch.random.fork_rng():
        exec(compile(code, "code", "exec"), namespace)  # noqa: S102
    count = sum(p.numel() for p in namespace["model"].parameters())
    assert count == parameter_count(arm, language.shape_of(scale))
    assert namespace["optimizer"].param_groups[0]["lr"] == 3e-3


@pytest.mark.parametrize("arm", NETWORKS)
def test_the_printed_names_are_the_classes_that_were_measured(arm):
    module = importlib.import_module(MODELS[arm].module)
    names = (MODELS[arm].config, MODELS[arm].model)
    assert tuple(getattr(module, name) for name in names) == language_arms._classes(arm)


def test_a_trial_is_keyed_by_the_code_of_every_model():
    seen = {}
    fingerprint._visit("gradatim.compare.language", "trial", seen)
    assert {
        "gradatim.models.energy_transformer", "gradatim.models.hope", "gradatim.models.lstm_language_model",
        "gradatim.compare.language_counts", "gradatim.probes.compute", "gradatim.bench.fit",
    } <= set(seen)  # fmt: skip


def test_counts_have_no_weights_to_save(text):
    scale = scale_of(language.comparison(text, ["n-gram"], **TINY))
    for arm in COUNTED:
        won = Winner(arm, "", 0.0, {"order": 3.0}, 1)
        assert language.fit_winner(won, scale) is None
        exec(winner_code(won, scale))  # noqa: S102


def test_the_figure_draws_both_ways_of_counting(text):
    study = language.comparison(text, ["transformer", "lstm"], **TINY)
    results = Results({a.name: {0: language.trial(a, 0, scale_of(study))} for a in study.arms[:2]})
    figure = Figure()
    language.LEARNING.draw(figure, results)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    assert language.LEARNING.table(results).rows
    language.LEARNING.draw(Figure(), Results({}))
    assert language.LEARNING.table(Results({})).rows == []
