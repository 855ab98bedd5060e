"""Training is what a plain loop would do, leaves no trace, and a stack of runs is those runs one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessorList

from gradatim.inference.gradient_scopes import scope_parameters
from gradatim.inference.gradient_text import GradientPredictor, answer_logits, layer_causal_loss
from gradatim.inference.in_context_text import InContextPredictor, ZeroShotPredictor, orders
from gradatim.inference.order_averaging import OrderAveragedLogits
from gradatim.inference.order_descent import descend_orders
from gradatim.inference.stacked_descent import MatrixDelta, StackedDescent
from tiny_causal_lm import tiny_gpt2, tiny_llama, tiny_tokenizer

PATTERN = "Review : {text}\nSentiment :{label}"
LABELS = {"1": " positive", "0": " negative"}
DEMOS = ["the film was great", "a dull book", "we all good good you", "very poor meal"]
ANSWERS = ["1", "0", "1", "0"]
TESTS = ["the meal was fine", "music", "it is a very very bad trip and so poor"]
SCOPES = ["all", "all-but-embeddings", "value:0", "value:1", "value:2", "layernorm"]
PLAIN = {"stop": None, "epochs": 3, "lr": 0.05}


def untied():
    return tiny_llama(tie=False)


MODELS = {"llama": tiny_llama, "untied": untied, "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def parts(request):
    return MODELS[request.param](), tiny_tokenizer(), PATTERN, LABELS


def lesson(tokenizer, i):
    ids = tokenizer(f"Review : {DEMOS[i]}\nSentiment :", return_tensors="pt").input_ids
    return ids, torch.tensor(tokenizer(LABELS[ANSWERS[i]]).input_ids)


def by_loop(model, tokenizer, order, scope, batch, lr, epochs, rule=torch.optim.SGD):
    """A copy of the model, trained example by example without padding."""
    twin = copy.deepcopy(model).eval()
    for p in twin.parameters():
        p.requires_grad_(False)
    wanted = list(scope_parameters(twin, scope).values())
    for p in wanted:
        p.requires_grad_(True)
    optimizer = rule(wanted, lr=lr)
    for _ in range(epochs):
        for start in range(0, len(order), batch):
            chunk = order[start : start + batch]
            optimizer.zero_grad()
            for i in chunk:
                ids, answer = lesson(tokenizer, i)
                loss = torch.nn.functional.cross_entropy(twin(ids).logits[:, -1], answer)
                (loss / len(chunk)).backward()
            optimizer.step()
    return twin


def close(found, expected, model):
    # Llama's norms compute in float32 whatever the model's precision.
    tolerance = 1e-9 if isinstance(model, GPT2LMHeadModel) else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def answers(model, tokenizer, texts=TESTS):
    rows = []
    for text in texts:
        ids = tokenizer(f"Review : {text}\nSentiment :", return_tensors="pt").input_ids
        with torch.no_grad():
            rows.append(model(ids).logits[0, -1].softmax(-1))
    return torch.stack(rows)


def allowed(parts, scope):
    if scope.startswith("value") and "gpt2" in type(parts[0]).__name__.lower():
        pytest.skip("queries, keys and values are one projection")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("optimizer", "batch"), [("sgd", 3), ("gd", 1), ("adam", 1)])
def test_training_is_the_plain_loop_and_leaves_no_trace(parts, scope, optimizer, batch):
    allowed(parts, scope)
    model, tokenizer = parts[:2]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    order = [2, 0, 3, 1]
    gd = GradientPredictor(*parts, optimizer=optimizer, batch_size=batch, scope=scope, **PLAIN)
    gd.fit(DEMOS, ANSWERS, order)
    rule = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    twin = by_loop(model, tokenizer, order, scope, 4 if optimizer == "gd" else batch, 0.05, 3, rule)
    expected = answers(twin, tokenizer)
    tolerance = 1e-4 if optimizer == "adam" else 1e-7  # Adam divides by gradients near 0
    torch.testing.assert_close(gd.next_token_proba(TESTS), expected, rtol=tolerance, atol=tolerance)
    assert (expected - answers(model, tokenizer)).abs().max() > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [s.epoch for s in gd.history_] == [1, 2, 3]
    with gd.applied() as trained:
        torch.testing.assert_close(answers(trained, tokenizer), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scope", ["all", "value:0", "value:2", "layernorm"])
@pytest.mark.parametrize(("optimizer", "batch"), [("sgd", 1), ("sgd", 3)])
def test_a_stack_of_runs_is_the_runs_one_by_one(parts, scope, optimizer, batch):
    allowed(parts, scope)
    model = parts[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gd = GradientPredictor(
        *parts, optimizer=optimizer, batch_size=batch, scope=scope, epochs=3, stop=None, items_per_batch=4
    )
    drawn, rates = orders(4, 2, seed=1), [0.02, 0.1]
    seen = []
    descend_orders(
        gd, DEMOS, ANSWERS, drawn, lrs=rates, on_epoch=lambda state, ask: seen.append((state, ask(TESTS)))
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any("forward" in vars(m) for m in model.modules())
    assert seen[-1][1].shape == (4, 3, model.config.vocab_size)
    for i, lr in enumerate(rates):
        gd.lr = lr
        for j, order in enumerate(drawn):
            alone = []

            def note(state, alone=alone):
                alone.append((state, gd.next_token_proba(TESTS)))

            gd.fit(DEMOS, ANSWERS, order, on_epoch=note)
            for (state, p), (own, q) in zip(seen, alone, strict=True):
                close(p[2 * i + j], q, model)
                assert float(state.loss[2 * i + j]) == pytest.approx(own.loss, rel=1e-5)
                assert float(state.accuracy[2 * i + j]) == own.accuracy


def test_what_a_stack_has_added_to_each_weight(parts):
    """Enough steps that factors turn into matrices, and batches in which tokens repeat."""
    model, tokenizer = parts[:2]
    lessons = [[lesson(tokenizer, i)[0][0].tolist() for i in order] for order in ([0, 2], [3, 1])]
    targets = torch.tensor([[int(lesson(tokenizer, i)[1]) for i in order] for order in ([0, 2], [3, 1])])
    with StackedDescent(model, 2) as stack:
        for _ in range(5):
            logits = stack(lessons)
            stack.step(-logits.log_softmax(-1).gather(2, targets[:, :, None]).mean(dim=(1, 2)), 0.05)
        added = [stack.deltas(s) for s in range(2)]
    assert any(m.dense is not None for m in stack._deltas.matrices.values())
    for s, order in enumerate(([0, 2], [3, 1])):
        twin = by_loop(model, tokenizer, order, "all", 2, 0.05, 5)
        for name, p in twin.named_parameters():
            difference = p.detach() - model.get_parameter(name)
            close(added[s][name], difference, model)


def test_delta_of_a_matrix_is_what_it_says():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta, whole = MatrixDelta(2, 9, 7, draw(1)), torch.zeros(2, 9, 7, dtype=torch.float64)
    for step in range(4):
        u, v = draw(2, 3, 9), draw(2, 3, 7)
        delta.add_product(u, v)
        whole += u.mT @ v
        ids, values = torch.tensor([[1, 4, 1], [step, 8, 8]]), draw(2, 3, 7)
        delta.add_rows(ids, values)
        for s in range(2):
            whole[s].index_add_(0, ids[s], values[s])
        x, asked = draw(2, 5, 7), torch.tensor([[0, 1, 4, 8, 1], [8, 8, 2, 3, step]])
        torch.testing.assert_close(delta.multiply(x), x @ whole.mT)
        torch.testing.assert_close(delta.look_up(asked), torch.stack([whole[s][asked[s]] for s in range(2)]))
        torch.testing.assert_close(torch.stack([delta.matrix(0), delta.matrix(1)]), whole)


def test_full_batch_descent_does_not_know_the_order(parts):
    gd = GradientPredictor(*parts, optimizer="gd", **PLAIN)
    sgd = GradientPredictor(*parts, optimizer="sgd", **PLAIN)
    found = [[p.fit(DEMOS, ANSWERS, o).next_token_proba(TESTS) for o in orders(4, 5)] for p in (gd, sgd)]
    full, one = (torch.stack(f).std(dim=0).sum(-1).mean() for f in found)
    assert full < 1e-8
    assert one > 1e-4


def test_stopping_needs_every_demonstration_right_and_a_small_loss():
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    gd = GradientPredictor(*parts, lr=0.1, epochs=60, stop=0.5).fit(DEMOS, ANSWERS)
    *before, last = gd.history_
    assert 1 < len(gd.history_) < 60
    assert last.accuracy == 1.0
    assert last.loss < 0.5
    assert all(s.loss >= 0.5 or s.accuracy < 1 for s in before)
    stack = []
    end = descend_orders(
        gd, DEMOS, ANSWERS, orders(4, 3), on_epoch=lambda s, ask: stack.append((s, ask(TESTS)))
    )
    assert bool(end.stopped.all())
    for j, order in enumerate(orders(4, 3)):
        gd.fit(DEMOS, ANSWERS, order)
        first = next(s.epoch for s, _ in stack if s.stopped[j])
        assert first == len(gd.history_)
        close(stack[-1][1][j], gd.next_token_proba(TESTS), parts[0])


def test_layers_below_a_trained_value_projection_run_once_per_prompt():
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    runs = dict.fromkeys(range(3), 0)
    for i, layer in enumerate(parts[0].model.layers):
        layer.self_attn.register_forward_hook(lambda m, a, o, i=i: runs.__setitem__(i, runs[i] + 1))
    gd = GradientPredictor(*parts, scope="value:2", epochs=4, stop=None)
    descend_orders(gd, DEMOS, ANSWERS, orders(4, 6), on_epoch=lambda state, ask: ask(TESTS))
    assert runs[0] == runs[1] <= 1 + 4  # the tests, and each batch that holds a demonstration not yet seen
    assert runs[2] == 4 * (4 + 1 + 1)


def test_layer_causal_loss_is_a_sum_of_losses_of_separate_layers():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    prompts, targets = zip(
        *((lesson(tokenizer, i)[0][0].tolist(), int(lesson(tokenizer, i)[1])) for i in range(4)), strict=True
    )
    loss = layer_causal_loss(model, prompts, targets)
    expected, gradients = 0.0, []
    hidden = [model.model(torch.tensor([p]), output_hidden_states=True).hidden_states for p in prompts]
    for layer in range(3):
        losses = []
        for p, t, h in zip(prompts, targets, hidden, strict=True):
            start = h[layer].detach()
            where = torch.arange(len(p))[None]
            out = model.model.layers[layer](
                start,
                position_embeddings=model.model.rotary_emb(start, position_ids=where),
                position_ids=where,
            )
            out = out[0] if isinstance(out, tuple) else out
            logits = model.lm_head(model.model.norm(out[:, -1]))
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([t])))
        mean = torch.stack(losses).mean()
        weight = model.model.layers[layer].mlp.up_proj.weight
        gradients.append(torch.autograd.grad(mean, weight, retain_graph=True)[0])
        expected += mean.item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for layer in range(3):
        found = model.model.layers[layer].mlp.up_proj.weight.grad
        torch.testing.assert_close(found, gradients[layer], rtol=1e-5, atol=1e-8)


def test_layer_causal_training_moves_the_layers_alone(parts):
    gd = GradientPredictor(*parts, scope="layer-causal", epochs=2, lr=0.05, stop=None).fit(DEMOS, ANSWERS)
    base = ZeroShotPredictor(*parts).next_token_proba(TESTS)
    assert (gd.next_token_proba(TESTS) - base).abs().max() > 1e-3
    assert not any("embed" in n or "wte" in n or "lm_head" in n for n in gd._trained)


def test_keeping_the_trained_weights():
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    twin = by_loop(parts[0], parts[1], [0, 1, 2, 3], "all", 1, 0.05, 3)
    gd = GradientPredictor(*parts, restore=False, **PLAIN).fit(DEMOS, ANSWERS)
    for p in (answers(parts[0], parts[1]), gd.next_token_proba(TESTS)):
        torch.testing.assert_close(p, answers(twin, parts[1]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loss_that_is_not_finite_names_rate_and_epoch_and_restores(stacked):
    parts = (tiny_llama(dtype=torch.float32), tiny_tokenizer(), PATTERN, LABELS)
    before = answers(parts[0], parts[1])
    gd = GradientPredictor(*parts, lr=1e30, restore=False)
    stack = {"orders": orders(4, 2), "on_epoch": print}
    run = (lambda *a: descend_orders(gd, *a, **stack)) if stacked else gd.fit
    with pytest.raises(RuntimeError, match=r"lr 1e\+30, epoch 1"):
        run(DEMOS, ANSWERS)
    assert torch.equal(answers(parts[0], parts[1]), before)


def test_other_misuse(parts):
    for settings, says in (
        ({"optimizer": "lion"}, "sgd, gd or adam"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"epochs": 0}, "at least 1"),
        ({"scope": "bias"}, "unknown scope"),
        ({"scope": "value:9"}, "layers 0 to 2"),
        ({"scope": "value:x"}, "names no layer"),
    ):
        with pytest.raises(ValueError, match=says):
            GradientPredictor(*parts, **settings)
    with pytest.raises(RuntimeError, match="not fitted"):
        GradientPredictor(*parts).next_token_proba(TESTS)
    with pytest.raises(ValueError, match="at least one demonstration"):
        GradientPredictor(*parts).fit([], [])
    with pytest.raises(ValueError, match="Adam"):
        descend_orders(
            GradientPredictor(*parts, optimizer="adam"), DEMOS, ANSWERS, orders(4, 2), on_epoch=print
        )
    with pytest.raises(ValueError, match="a loss per layer"):
        StackedDescent(parts[0], 2, "layer-causal")
    with StackedDescent(parts[0], 2) as stack, pytest.raises(ValueError, match="same number of prompts"):
        stack([[[1]], [[1], [2]]])


def test_a_fused_projection_is_refused_by_name():
    with pytest.raises(ValueError, match="no value projection of its own"):
        GradientPredictor(tiny_gpt2(), tiny_tokenizer(), PATTERN, LABELS, scope="value:1")


def test_averaging_over_orders_is_the_mean_of_log_probabilities(parts):
    model, tokenizer = parts[:2]
    icl = InContextPredictor(*parts)
    text, drawn = TESTS[0], orders(4, 5, seed=2)
    asked = tokenizer(icl.template.question(text), return_tensors="pt")
    rule = OrderAveragedLogits(icl, DEMOS, ANSWERS, text, n_orders=5, seed=2)
    single = torch.stack([icl.fit(DEMOS, ANSWERS, o).next_token_proba([text])[0] for o in drawn])
    expected = single.log().mean(0).log_softmax(-1)
    with torch.no_grad():
        found = rule(asked.input_ids, answer_logits(model, asked.input_ids.tolist()))
    torch.testing.assert_close(found[0], expected, rtol=1e-8, atol=1e-8)
    out = model.generate(
        asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=2, do_sample=False,
        logits_processor=LogitsProcessorList([rule]),
    )  # fmt: skip
    assert int(out[0, asked.input_ids.shape[1]]) == int(expected.argmax())
    barred = torch.zeros(1, model.config.vocab_size, dtype=torch.float64)
    barred[0, 3] = -torch.inf
    assert rule(asked.input_ids, barred)[0, 3] == -torch.inf
    with pytest.raises(ValueError, match="begin with the question"):
        rule(asked.input_ids[:, 1:], barred)
