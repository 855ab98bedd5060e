"""Linear self-attention against loops over tokens, and the regressor's interface."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig, position_code
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.tasks.linear_regression import LinearRegressionTask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(dim=3, heads=2, key=2, **options):
    return LinearSelfAttention(dim, heads, key, init_scale=1.0, generator=seeded(), **options).double()


def tokens(batch=2, t=5, dim=3):
    return torch.randn(batch, t, dim, generator=seeded(1), dtype=torch.float64)


def by_hand(module, h, queries=1):
    """Query by query, key by key, head by head."""
    out = h.clone()
    batch, t, dim = h.shape
    last = t if module.include_query else t - queries
    one = torch.ones(1, dtype=h.dtype)
    widen = (lambda v: torch.cat([one, v])) if module.bias else (lambda v: v)
    for b in range(batch):
        for i in range(t):
            total = torch.zeros(dim, dtype=h.dtype)
            for m in range(module.num_heads):
                q = widen(h[b, i]) @ module.query[m]
                k = [widen(h[b, j]) @ module.key[m] for j in range(last)]
                v = [widen(h[b, j]) @ module.value[m] @ module.output[m] for j in range(last)]
                if module.sum_normalize:
                    q, k = q / q.sum(), [a / a.sum() for a in k]
                scores = torch.stack([q @ a for a in k])
                linear = scores / last if module.normalize == "n" else scores
                soft = torch.softmax(scores / math.sqrt(module.key_dim), 0)
                gate = {"linear": 0.0, "softmax": 1.0, "mixed": 0.5}[module.attention]
                total += ((1 - gate) * linear + gate * soft) @ torch.stack(v)
            if module.only is not None:
                total = total * (torch.arange(dim) == module.only)
            out[b, i] = h[b, i] + module.damping * total
    return out if module.clamp is None else out.clamp(-module.clamp, module.clamp)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "softmax"},
        {"attention": "mixed"},
        {"bias": True},
        {"bias": True, "attention": "softmax"},
        {"include_query": True},
        {"normalize": "n"},
        {"damping": 0.5, "clamp": 1.0},
        {"only": 1},
        {"sum_normalize": True},
    ],
)
def test_layer_equals_loops(options):
    module = layer(**options)
    h = tokens()
    torch.testing.assert_close(module(h), by_hand(module, h), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module(h, only_queries=True), by_hand(module, h)[:, -1:])
    if not module.include_query:
        torch.testing.assert_close(module(h, 2), by_hand(module, h, 2), rtol=1e-10, atol=1e-10)


def test_products_are_all_that_matters():
    module = layer(key=3)
    twin = LinearSelfAttention(3, 2).double().set_products(*module.products())
    torch.testing.assert_close(twin(tokens()), module(tokens()))
    with pytest.raises(ValueError, match="key_dim equals dim"):
        layer().set_products(*layer().products())


def test_no_keys_no_update():
    for attention in ("linear", "softmax"):
        h = tokens(t=1)
        assert torch.equal(layer(attention=attention)(h), h)


def test_initial_weights_have_the_stated_variance():
    module = LinearSelfAttention(100, generator=seeded())
    for weight in (module.query, module.output):
        assert weight.std().item() == pytest.approx(math.sqrt(0.002 / 100), rel=0.03)
        assert weight.abs().max().item() <= 2 * math.sqrt(0.002 / 100) / 0.879
    assert torch.equal(module.query, LinearSelfAttention(100, generator=seeded()).query)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"attention": "sparse"}, "attention must be"),
        ({"normalize": "m"}, "normalize must be"),
        ({"clamp": 0.0}, "clamp"),
        ({"only": 3}, "below 3"),
    ],
)
def test_bad_layers_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        LinearSelfAttention(**{"dim": 3, **options})


def test_bad_tokens_are_refused():
    with pytest.raises(ValueError, match="3 wide"):
        layer()(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="queries must be"):
        layer()(tokens(), 6)
    with pytest.raises(ValueError, match="one query at a time"):
        layer(include_query=True)(tokens(), 2)


VARIANTS = [
    {},
    {"num_layers": 3},
    {"num_layers": 3, "tied": False, "num_heads": 2, "mlp_ratio": 2, "layer_norm": "pre"},
    {"num_layers": 2, "layer_norm": "between"},
    {"num_layers": 2, "attention": "softmax", "num_heads": 2, "y_only": True},
    {"num_layers": 2, "attention": "mixed", "damping": 0.75, "clamp": 10.0},
    {"num_layers": 2, "include_query": True, "bias": True},
    {"num_layers": 2, "tied": False, "tokens": "interleaved", "pos_dim": 20, "attention": "softmax-first"},
    {"num_layers": 2, "tokens": "interleaved", "pos_dim": 10, "positions": "sinusoidal", "key_dim": 6},
    {"num_layers": 2, "normalize": "n", "sum_normalize": True},
    {"features": 5},
]


def regressor(options, d=3):
    return LinearAttentionRegressor(LSAConfig(d=d, init_scale=0.5, **options), seeded()).double()


def drawn(batch=2, n=6, d=3, seed=3):
    found = LinearRegressionTask(d, n).sample(batch, generator=seeded(seed), dtype=torch.float64)
    return found.x, found.y


@pytest.mark.parametrize("options", VARIANTS)
def test_every_variant(options, tmp_path):
    model = regressor(options)
    x, y = drawn()
    out = model(x, y, labels=y, output_hidden_states=True)
    assert out.predictions.shape == y.shape
    assert len(out.hidden_states) == model.config.num_layers + 1
    assert all(h.shape == (2, 6, model.config.width) for h in out.hidden_states)
    torch.testing.assert_close(out.loss, 0.5 * (out.predictions - y).square().mean())
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # Causal: later pairs and the own label change nothing.
    moved_y, moved_x = y.clone(), x.clone()
    moved_y[:, 3:] += 1
    moved_x[:, 4:] += 1
    after = model(moved_x, moved_y).predictions
    torch.testing.assert_close(after[:, :4], out.predictions[:, :4], rtol=0, atol=0)
    # Queries together equal queries one by one, and the last prefix.
    query = torch.randn(2, 3, 3, generator=seeded(4), dtype=torch.float64)
    together = model(x, y, query=query).predictions
    apart = [model(x, y, query=query[:, i : i + 1]).predictions for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))
    last = model(x[:, :-1], y[:, :-1], query=x[:, -1:]).predictions
    torch.testing.assert_close(last, out.predictions[:, -1:])
    model.save_pretrained(tmp_path)
    again = LinearAttentionRegressor.from_pretrained(tmp_path)
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    torch.testing.assert_close(again(x, y).predictions, out.predictions, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_looped_model_is_its_layer_applied_again():
    model = regressor({"num_layers": 3})
    x, y = drawn()
    h = model.embed(x, y, x[:, :1])
    for _ in range(3):
        h = model.layers[0](h)
    torch.testing.assert_close(model(x, y, query=x[:, :1]).predictions, -h[:, -1:, 3])


def test_order_of_pairs_does_not_matter():
    model = regressor({"num_layers": 2})
    x, y = drawn()
    mixed = torch.tensor([3, 1, 0, 5, 2, 4])
    query = x[:, :1]
    torch.testing.assert_close(
        model(x[:, mixed], y[:, mixed], query=query).predictions, model(x, y, query=query).predictions
    )


def test_float32_and_bfloat16():
    x, y = drawn()
    exact = regressor({"num_layers": 2})(x, y).predictions
    single = regressor({"num_layers": 2}).float()(x.float(), y.float()).predictions
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)
    half = regressor({"num_layers": 2}).bfloat16()(x.bfloat16(), y.bfloat16()).predictions
    assert half.dtype == torch.bfloat16


def test_inputs_of_another_precision_are_taken_to_the_models():
    model = regressor({"num_layers": 2})
    x, y = drawn()
    x, y = x.float(), y.float()
    found = model(x, y, labels=y, query=None)
    assert found.predictions.dtype == torch.float64
    torch.testing.assert_close(found.predictions, model(x.double(), y.double()).predictions)


def test_seeds_stack_under_vmap():
    from torch.func import functional_call, stack_module_state, vmap

    models = [regressor({"num_layers": 2, "num_heads": 2}) for _ in range(2)]
    with torch.no_grad():
        models[1].layers[0].query *= 2
    parameters, buffers = stack_module_state(models)
    x, y = drawn(batch=4)

    def one(p, b, x, y):
        return functional_call(models[0], (p, b), (x, y)).predictions

    together = vmap(one)(parameters, buffers, x.reshape(2, 2, 6, 3), y.reshape(2, 2, 6))
    apart = [m(x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2]).predictions for i, m in enumerate(models)]
    torch.testing.assert_close(together, torch.stack(apart))


def test_fit_learns_and_repeats():
    task = LinearRegressionTask(2, 11, x="uniform")
    runs = []
    for _ in range(2):
        model = LinearAttentionRegressor(LSAConfig(d=2, init_scale=0.02), seeded())
        runs.append(model.fit(task, 150, batch=128, lr=1e-2, seed=5))
    assert runs[0] == runs[1]
    early, late = sum(runs[0][:20]), sum(runs[0][-20:])
    assert late < 0.5 * early


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"d": 0}, "d must be at least 1"),
        ({"layer_norm": "post"}, "layer_norm must be one of"),
        ({"tokens": "interleaved"}, "positional code"),
        ({"pos_dim": 3}, "positional code"),
        ({"attention": "softmax-first"}, "tied=False"),
        ({"mlp_ratio": -1}, "must not be negative"),
    ],
)
def test_bad_settings_of_a_regressor_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        LSAConfig(**{"d": 3, **options})


def test_bad_contexts_are_refused():
    model = regressor({})
    x, y = drawn()
    for bad in ((x[0], y), (x, y[:, :3])):
        with pytest.raises((ValueError, TypeCheckError)):
            model(*bad)
    for bad, match in (((x[..., :2], y), "x must be"), ((x[:, :0], y[:, :0]), "n at least 1")):
        with pytest.raises(ValueError, match=match):
            model(*bad)
    with pytest.raises((ValueError, TypeCheckError)):
        model(x, y, query=x[..., :2])
    with pytest.raises(ValueError, match="labels must be"):
        model(x, y, labels=y[:, :3])


def test_position_codes():
    code = position_code(torch.arange(4), 5, "onehot")
    assert torch.equal(code, torch.eye(5, dtype=torch.float64)[:4])
    waves = position_code(torch.arange(30), 7, "sinusoidal")
    assert waves.shape == (30, 7)
    assert (torch.cdist(waves, waves) + torch.eye(30)).min() > 0.1
    with pytest.raises(ValueError, match="cannot name position 4"):
        position_code(torch.arange(5), 4, "onehot")
