"""Extracted heads reproduce the attention that the layer itself computes, where nothing else enters it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradatim.probes import attention_direction, attention_svm


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def own_attention(found, scale):
    logits = torch.einsum("btd,hde,bse->bhst", found.inputs, found.weight, found.queries)
    return (logits * scale).softmax(-1)


class Wrapped(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, bias=False, **options)

    def forward(self, q, kv):
        return self.attn(q, kv, kv, average_attn_weights=False)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 7, "vdim": 7}])
def test_cross_attention_of_torch(batch_first, widths):
    model = seeded(lambda: Wrapped(batch_first=batch_first, **widths))
    q, kv = torch.randn(2, 4, 12), torch.randn(2, 5, widths.get("kdim", 12))
    swap = (lambda a: a) if batch_first else (lambda a: a.transpose(0, 1))
    found = attention_direction(model, (swap(q), swap(kv)), "attn")
    assert found.inputs.shape == kv.shape
    assert found.outside_theory == ("scale",)
    _, expected = model(swap(q), swap(kv))
    torch.testing.assert_close(own_attention(found, 0.5), expected, atol=1e-5, rtol=1e-4)


def test_encoder_layer_takes_no_fast_path_around_the_hook():
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    layer.linear1.train()
    found = attention_direction(layer, torch.randn(2, 3, 8), "self_attn")
    assert found.inputs.shape == (2, 3, 8)
    assert "bias" in found.outside_theory
    assert layer.linear1.training
    assert not layer.training


def small_models():
    import transformers as hf

    shared = {"vocab_size": 20}
    return {
        "bert": (
            lambda: hf.BertModel(hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
                intermediate_size=8, **shared)), "encoder.layer.0.attention.self", 0.5),
        "distilbert": (
            lambda: hf.DistilBertModel(hf.DistilBertConfig(dim=16, n_layers=1, n_heads=4, hidden_dim=8,
                **shared)), "transformer.layer.0.attention", 0.5),
        "gpt2": (
            lambda: hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=1, n_head=4, n_positions=16, **shared)),
            "h.0.attn", 0.5),
        "t5": (
            lambda: hf.T5EncoderModel(hf.T5Config(d_model=16, d_kv=4, num_layers=1, num_heads=4, d_ff=8,
                **shared)), "encoder.block.0.layer.0.SelfAttention", 1.0),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers' own notices on tiny configurations
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "t5"])
def test_attention_of_transformers_without_biases_and_positions(kind):
    build, layer, scale = small_models()[kind]
    model = seeded(build).eval()
    model.set_attn_implementation("eager")
    module = model.get_submodule(layer)
    with torch.no_grad():
        for m in module.modules():
            if getattr(m, "bias", None) is not None:
                m.bias.zero_()
        if kind == "t5":
            module.relative_attention_bias.weight.zero_()
    ids = torch.arange(6)[None]
    found = attention_direction(model, {"input_ids": ids}, layer)
    expected = model(ids, output_attentions=True).attentions[0]
    attention = own_attention(found, scale)
    if kind == "gpt2":  # causal
        attention = attention.tril() / attention.tril().sum(-1, keepdim=True)
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["neox", "phi3"])
def test_fused_projections_are_divided_as_the_model_divides_them(kind):
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    if kind == "neox":
        model = seeded(lambda: hf.GPTNeoXModel(hf.GPTNeoXConfig(vocab_size=20, **sizes)))
        layer = "layers.0.attention"
    else:
        config = hf.Phi3Config(vocab_size=20, num_key_value_heads=2, pad_token_id=0, **sizes)
        model, layer = seeded(lambda: hf.Phi3Model(config)), "layers.0.self_attn"
    module = model.get_submodule(layer)
    found = attention_direction(model, {"input_ids": torch.arange(6)[None]}, layer)
    assert "rotary position" in found.outside_theory
    with torch.no_grad():
        if kind == "neox":
            module.query_key_value.bias.zero_()
            qkv = module.query_key_value(found.inputs).view(1, 6, 4, 12).transpose(1, 2)
            q, k, _ = qkv.chunk(3, dim=-1)
        else:
            qkv = module.qkv_proj(found.inputs)
            q = qkv[..., :16].view(1, 6, 4, 4).transpose(1, 2)
            k = qkv[..., 16:24].view(1, 6, 2, 4).transpose(1, 2).repeat_interleave(2, dim=1)
    expected = (q @ k.mT).softmax(-1)
    torch.testing.assert_close(own_attention(found, 1.0), expected, atol=1e-5, rtol=1e-4)


def test_alignment_of_a_head_made_to_follow_an_svm():
    x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = attention_svm(x, None, [1, 2, 0], norm="nuclear", query_index=3).weight
    layer = Wrapped(batch_first=True)
    layer.attn = nn.MultiheadAttention(6, 1, bias=False, batch_first=True).double()
    with torch.no_grad():  # W = W_K^T W_Q with W_Q = I
        layer.attn.in_proj_weight[:6] = torch.eye(6)
        layer.attn.in_proj_weight[6:12] = 7.0 * w.T
    found = attention_direction(layer, (x, x), "attn").alignment(0, position=3)
    assert found.selected.tolist() == [1, 2, 0]
    assert found.cosine > 1 - 1e-6
    seen = attention_direction(layer, (x, x), "attn").alignment(0, position=3, causal=True)
    assert torch.isnan(seen.svm.margins[:, 4]).all()


def test_layers_that_cannot_be_read_are_named():
    model = Wrapped(batch_first=True)
    x = torch.randn(1, 3, 12)
    with pytest.raises(ValueError, match="no layer 'nowhere'; attention layers: attn"):
        attention_direction(model, (x, x), "nowhere")
    with pytest.raises(ValueError, match="no query and key weights"):
        attention_direction(nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2), "0")
    idle = nn.ModuleDict({"a": nn.MultiheadAttention(4, 1), "b": nn.Identity()})
    idle.forward = lambda x: idle["b"](x)
    with pytest.raises(ValueError, match="did not run"):
        attention_direction(idle, torch.randn(1, 2, 4), "a")
