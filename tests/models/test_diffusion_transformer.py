"""The modulated transformer against a loop, its patches, and the two controls built on it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gradatim.models import DiffusionDenoiser, DiffusionTransformer, FeedForwardDenoiser
from gradatim.models.diffusion_transformer import PatchGrid, TimeEmbedding
from gradatim.tasks import NoiseSchedule, digit_images, psnr


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(module, std=0.3, seed=0):
    """A module away from its zeros, in float64."""
    g = generator(seed)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(std * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def test_patches_are_cut_row_by_row_and_put_back():
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = PatchGrid((3, 4, 6), 2, 8)
    tokens = patches.split(x)
    assert tokens.shape == (2, 6, 12)
    for n in range(2):
        for row in range(2):
            for column in range(3):
                block = x[n, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(tokens[n, 3 * row + column], block.flatten())
    assert torch.equal(patches.join(tokens), x)


def test_sequences_are_cut_in_time():
    x = torch.arange(2 * 6 * 3, dtype=torch.float32).view(2, 6, 3)
    patches = PatchGrid((6, 3), 2, 8)
    tokens = patches.split(x)
    assert torch.equal(tokens[1, 2], x[1, 4:6].flatten())
    assert torch.equal(patches.join(tokens), x)


def test_positions_tell_all_patches_apart():
    where = PatchGrid((1, 8, 12), 2, 16).positions
    assert where.shape == (24, 16)
    assert torch.pdist(where).min() > 0.1
    # Half of the width is the row's: patches of one row share it.
    assert torch.equal(where[0, :8], where[5, :8])
    assert torch.equal(where[0, 8:], where[6, 8:])


@pytest.mark.parametrize("conditioning", ["adaln", "adaln_zero"])
def test_equals_a_loop_over_items_heads_and_tokens(conditioning):
    D, heads = 8, 2
    body = shaken(
        DiffusionTransformer(
            (1, 4, 4), hidden_size=D, num_hidden_layers=2, num_attention_heads=heads,
            intermediate_size=12, conditioning=conditioning, seed=0,
        )
    )  # fmt: skip
    x = torch.randn(3, 1, 4, 4, generator=generator(), dtype=torch.float64)
    condition = torch.randn(3, D, generator=generator(1), dtype=torch.float64)

    def norm(v):
        return (v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt()

    def item(x, c):
        patches = [x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(2) for j in range(2)]
        h = [body.read_in(p) + body.patches.positions[k].double() for k, p in enumerate(patches)]
        c = c * torch.sigmoid(c)
        for block in body.blocks:
            parts = block.modulation(c).split(D)
            s1, b1, s2, b2 = parts[:4]
            g1, g2 = parts[4:] if conditioning == "adaln_zero" else (1.0, 1.0)
            qkv = [block.qkv((1 + s1) * norm(v) + b1).split(D) for v in h]
            mixed = []
            for q, _, _ in qkv:
                heads_out = []
                for a in range(heads):
                    cut = slice(a * D // heads, (a + 1) * D // heads)
                    scores = torch.stack([q[cut] @ k[cut] / math.sqrt(D // heads) for _, k, _ in qkv])
                    weights = scores.exp() / scores.exp().sum()
                    heads_out.append(sum(w * v[cut] for w, (_, _, v) in zip(weights, qkv, strict=True)))
                mixed.append(block.out(torch.cat(heads_out)))
            h = [v + g1 * m for v, m in zip(h, mixed, strict=True)]
            inner = [F.gelu(block.up((1 + s2) * norm(v) + b2), approximate="tanh") for v in h]
            h = [v + g2 * block.down(i) for v, i in zip(h, inner, strict=True)]
        s, b = body.final_modulation(c).split(D)
        return body.patches.join(torch.stack([body.read_out((1 + s) * norm(v) + b) for v in h])[None])[0]

    expected = torch.stack([item(*pair) for pair in zip(x, condition, strict=True)])
    for twice in (False, True):
        out = body(x, condition=condition, twice_differentiable=twice)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    shared = body(x, condition=condition[:1])
    same = body(x, condition=condition[:1].expand(3, -1))
    torch.testing.assert_close(shared, same, rtol=1e-12, atol=1e-12)


def test_zero_gates_start_as_the_identity_with_nothing_to_say():
    body = DiffusionTransformer((1, 4, 4), hidden_size=8, num_attention_heads=2, seed=0)
    x = torch.randn(2, 1, 4, 4, generator=generator())
    condition = torch.randn(1, 8, generator=generator(1))
    assert body(x, condition=condition).abs().max() == 0
    h = torch.randn(2, 4, 8, generator=generator(2))
    assert torch.equal(body.blocks[0](h, condition[:, None]), h)
    plain = DiffusionTransformer(
        (1, 4, 4), hidden_size=8, num_attention_heads=2, conditioning="adaln", seed=0
    )
    assert plain(x, condition=condition).abs().max() > 0.01


def test_a_seed_fixes_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b = (FeedForwardDenoiser((1, 4, 4), hidden_size=8, num_attention_heads=2, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    c = FeedForwardDenoiser((1, 4, 4), hidden_size=8, num_attention_heads=2, seed=4)
    assert not torch.equal(a.body.read_in.weight, c.body.read_in.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (1, 5, 4)}, "patch_size must divide"),
        ({"shape": (4,)}, "shape must be"),
        ({"hidden_size": 10, "num_attention_heads": 4}, "cannot be divided"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_hidden_layers": -1}, "must not be negative"),
        ({"conditioning": "film"}, "conditioning must be"),
        ({"hidden_size": 9, "num_attention_heads": 3}, "even width"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTransformer(**{"shape": (1, 4, 4), **settings})


def test_another_shape_is_refused():
    body = DiffusionTransformer((1, 4, 4), hidden_size=8, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"expected \[batch, 1, 4, 4\]"):
        body(torch.zeros(2, 1, 4, 8), condition=torch.zeros(1, 8))


def test_times_have_waves_of_their_own():
    time = TimeEmbedding(16)
    out = time(torch.tensor([0.0, 1.0, 99.0]))
    assert out.shape == (3, 16)
    assert torch.pdist(out).min() > 1e-3


class Oracle(DiffusionDenoiser):
    """Knows the clean array, and so the noise of whatever it is shown."""

    def noise(self, x, t):
        signal, deviation = self.schedule.signal_and_noise(t.long())
        return (x - signal.to(x) * self.clean) / deviation.to(x)


def small(kind, **settings):
    return kind((1, 4, 4), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, seed=0, **settings)


def test_ddim_with_a_perfect_predictor_gives_the_clean_array():
    model = small(Oracle, max_time=99).double()
    model.clean = torch.rand(5, 1, 4, 4, generator=generator(), dtype=torch.float64)
    eps = torch.randn(model.clean.shape, generator=generator(1), dtype=torch.float64)
    noisy = model.schedule.add_noise(model.clean, eps, 99)
    torch.testing.assert_close(model(noisy).prediction, model.clean, rtol=1e-9, atol=1e-9)


def test_ddim_of_gaussian_data_is_the_known_linear_map():
    # x ~ N(0, 1): the best guess of eps is sqrt(1 - abar) x_t, so every step multiplies.
    class Gaussian(DiffusionDenoiser):
        def noise(self, x, t):
            return self.schedule.signal_and_noise(t.long())[1].to(x) * x

    model = small(Gaussian, max_time=49)
    kept = [1.0, *model.schedule.alphas_cumprod.tolist()]
    factor = 1.0
    for t in range(49, -1, -1):
        factor *= math.sqrt(kept[t] * kept[t + 1]) + math.sqrt((1 - kept[t]) * (1 - kept[t + 1]))
    x = torch.randn(2, 1, 4, 4, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(model.denoise(x), factor * x)
    torch.testing.assert_close(model.denoise(x, rounds=3), factor**3 * x)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        model.denoise(x, rounds=0)
    with pytest.raises(ValueError, match="max_time must lie in"):
        small(DiffusionDenoiser, max_time=1000)


def test_the_diffusion_loss_is_the_error_of_the_noise():
    model = shaken(small(DiffusionDenoiser, max_time=9))
    clean = torch.rand(6, 1, 4, 4, generator=generator(), dtype=torch.float64)
    loss = model(clean, clean, generator=generator(7)).loss
    g = generator(7)
    t = torch.randint(10, (6,), generator=g)
    eps = torch.randn(clean.shape, generator=g, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        abar = math.prod(1 - (1e-4 + s * (2e-2 - 1e-4) / 999) for s in range(int(t[i]) + 1))
        noisy = math.sqrt(abar) * clean[i] + math.sqrt(1 - abar) * eps[i]
        guess = model.body(noisy[None], condition=model.time(t[i : i + 1].double()))[0]
        total += float(((guess - eps[i]) ** 2).mean().detach()) / 6
    assert float(loss.detach()) == pytest.approx(total, rel=1e-9)


def test_the_feed_forward_control_adds_its_correction_again_and_again():
    model = shaken(small(FeedForwardDenoiser, num_steps_range=(2, 3)))
    x = torch.randn(4, 1, 4, 4, generator=generator(), dtype=torch.float64)
    y = x
    for steps in (1, 2, 3, 4):
        y = y + model.body(y, condition=model.condition)
        torch.testing.assert_close(model(x, num_steps=steps).prediction, y)
    assert torch.equal(model(x).prediction, model(x, num_steps=2).prediction)
    target = torch.zeros_like(x)
    losses = {float(F.smooth_l1_loss(model(x, num_steps=n).prediction, target).detach()) for n in (2, 3)}
    assert {float(model(x, target, generator=generator(s)).loss.detach()) for s in range(8)} == losses
    with pytest.raises(ValueError, match="low <= high"):
        small(FeedForwardDenoiser, num_steps_range=(3, 2))
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        model(x, num_steps=0)


def test_noise_schedule_and_psnr_by_hand():
    schedule = NoiseSchedule()
    abar = 1.0
    for s in range(200):
        abar *= 1 - (1e-4 + s * (2e-2 - 1e-4) / 999)
        if s == 99:
            assert float(schedule.signal_and_noise(99)[0]) == pytest.approx(math.sqrt(abar), rel=1e-12)
    assert float(schedule.signal_and_noise(199)[1]) == pytest.approx(math.sqrt(1 - abar), rel=1e-12)
    clean = torch.zeros(2, 1, 2, 2)
    assert psnr(clean + 0.5, clean) == pytest.approx(10 * math.log10(4 / 0.25))
    assert psnr(clean + 3.0, clean) == pytest.approx(10 * math.log10(4 / 1.0))  # clipped to 1
    assert psnr(clean, clean) == math.inf
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(clean, clean[:1])
    with pytest.raises(ValueError, match="t must lie in"):
        schedule.signal_and_noise(1000)
    with pytest.raises(ValueError, match="betas must lie"):
        NoiseSchedule(beta_start=0.0)


def test_digits_are_divided_without_overlap():
    parts = digit_images(3, valid=100, test=200)
    assert [len(p) for p in (parts.train, parts.valid, parts.test)] == [1497, 100, 200]
    images = torch.cat([parts.train, parts.valid, parts.test])
    assert images.min() == -1
    assert images.max() == 1
    assert float(images.double().mean()) == pytest.approx(
        float(digit_images(4).train.double().mean()), abs=0.05
    )
    whole = digit_images(3, valid=0, test=0).train
    assert torch.equal(images.flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    assert torch.equal(parts.test, digit_images(3, valid=100, test=200).test)
    with pytest.raises(ValueError, match="leave none"):
        digit_images(0, valid=1000, test=797)
