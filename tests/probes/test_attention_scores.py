"""Head scores on attention that is known, on our transformer and on a Hugging Face GPT-2."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import GPT2Config, GPT2Model

from gradatim.models.in_context import InContextConfig, InContextTransformer
from gradatim.probes import AttentionScores, attention_scores, repeated_prompts
from gradatim.probes.attention_scores import attention_maps
from gradatim.tasks import BooleanTask


def prompts(m=16, d=8, batch=6, seed=0):
    return BooleanTask(d, "majority", m).sample(batch, generator=torch.Generator().manual_seed(seed))


class Known(nn.Module):
    """Gives back the attention it was made with."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def forward(self, **arguments):
        return type("Output", (), {"attentions": self.maps})()


def known_scores(attention, x, y, kind, **options):
    return attention_scores(Known(attention), x, y, kind, embed=lambda x, y: x, **options).scores[0]


def loop(attention, x, kind, start):
    """The definition, written out."""
    batch, heads, time, _ = attention.shape
    m = time // 2
    found = []
    for h in range(heads):
        hits = []
        for b in range(batch):
            for t in range(m):
                if kind == "induction":
                    equal = [j for j in range(t) if torch.equal(x[b, j], x[b, t])]
                    if equal:
                        hits.append(sum(attention[b, h, 2 * t, 2 * j + 1].item() for j in equal))
                elif t >= start:
                    cosine = [(x[b, j] @ x[b, t]).item() for j in range(t)]
                    j = cosine.index(max(cosine))
                    hits.append(attention[b, h, 2 * t, 2 * j + 1].item())
        found.append(sum(hits) / len(hits))
    return found


@pytest.mark.parametrize("kind", ["induction", "nearest"])
def test_scores_against_the_loop(kind):
    p = repeated_prompts(prompt_task := BooleanTask(8, "majority", 16), points=4, repeats=4, batch=5,
                         generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert prompt_task.n == 16
    attention = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2)).tril()
    attention = attention / attention.sum(-1, keepdim=True)
    found = known_scores(attention, p.x, p.y, kind)
    assert np.allclose(found, loop(attention, p.x, kind, start=8), atol=1e-6)
    late = known_scores(attention, p.x, p.y, "nearest", start=13)
    assert np.allclose(late, loop(attention, p.x, "nearest", start=13), atol=1e-6)


def test_a_head_that_copies_scores_one_and_uniform_attention_scores_chance():
    p = repeated_prompts(BooleanTask(12, "majority", 12), generator=torch.Generator().manual_seed(0))
    assert p.x.shape == (100, 48, 12)
    perfect = torch.zeros(100, 2, 96, 96)
    for t in range(12, 48):
        perfect[:, 0, 2 * t, 2 * (t - 12) + 1] = 1.0
    perfect[:, 1] = torch.ones(96, 96).tril() / torch.arange(1, 97)[:, None]
    scores = attention_scores(Known(perfect), p.x, p.y, embed=lambda x, y: x)
    assert scores.scores[0, 0] == pytest.approx(1.0, abs=0.02)  # equal inputs within the first 12 are rare
    assert scores.scores[0, 1] == pytest.approx(scores.chance, abs=1e-6)
    assert scores.heads == [(0, 0)]
    assert str(scores).startswith("1 induction heads of 2; strongest: layer 0, head 0")


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_maps_of_our_transformer_are_those_it_uses(positions):
    config = InContextConfig(d=8, n_positions=16, n_layer=2, n_head=2, n_embd=16, positions=positions)
    model = InContextTransformer(config, seed=3).eval()
    p = prompts()
    maps = attention_maps(model, p.x, p.y)
    assert len(maps) == 2
    assert all(a.shape == (6, 2, 32, 32) for a in maps)
    # Mixing the values with these maps gives the output of the attention layer.
    seen = {}
    layer = model.backbone.blocks[0].attention
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(h=inputs[0], out=output))
    model.token_states(p.x, p.y)
    hook.remove()
    v = layer.qkv(seen["h"]).chunk(3, -1)[2].unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = layer.out((maps[0] @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(mixed, seen["out"], atol=1e-5)
    assert not layer._forward_pre_hooks
    scores = attention_scores(model, p.x, p.y, "nearest")
    assert scores.scores.shape == (2, 2)
    figure = Figure()
    scores.plot(figure)
    assert figure.axes


def test_a_hugging_face_gpt2():
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=40, vocab_size=5)).eval()
    read_in = nn.Linear(8, 16)

    def embed(x, y):
        labels = torch.nn.functional.pad(y[..., None], (0, x.shape[2] - 1))
        return read_in(torch.stack([x, labels], 2).flatten(1, 2))

    p = prompts()
    before = gpt2.config._attn_implementation
    scores = attention_scores(gpt2, p.x, p.y, "nearest", embed=embed)
    assert gpt2.config._attn_implementation == before
    assert scores.scores.shape == (3, 4)
    gpt2.set_attn_implementation("eager")
    with torch.no_grad():
        direct = gpt2(inputs_embeds=embed(p.x, p.y), output_attentions=True).attentions
    assert np.allclose(scores.scores[1], loop(direct[1], p.x, "nearest", 8), atol=1e-5)


def test_refusals():
    p = prompts()
    with pytest.raises(ValueError, match="kind"):
        attention_scores(Known(), p.x, p.y, "prefix")
    with pytest.raises(ValueError, match="repeated_prompts"):
        known_scores(torch.ones(6, 1, 32, 32), p.x[:, :3], p.y[:, :3], "induction")
    with pytest.raises(ValueError, match="no attention"):
        attention_scores(nn.Linear(2, 2), p.x, p.y, "nearest")
    with pytest.raises(ValueError, match="start"):
        attention_scores(Known(), p.x, p.y, "nearest", start=16)
    with pytest.raises(ValueError, match="points=99"):
        repeated_prompts(BooleanTask(4, "parity", 10), points=99)
    assert AttentionScores(np.eye(2), "nearest", 0.1).heads == [(0, 0), (1, 1)]
