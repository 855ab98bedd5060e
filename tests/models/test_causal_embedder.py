"""Pooling that sees one row at a time, encoders from causal language models, and prefixes read once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.models import causal_embedder, encode_with_prefix, load_embedder, merge_adapters
from gradatim.models.instruction_pooling import InstructionPooling
from gradatim.models.quiet import quietly
from gradatim.tasks import InContextCollator, InContextPrompt
from tiny_causal_lm import tiny_gpt2, tiny_llama, tiny_tokenizer
from tiny_encoder import collate, tiny_encoder, toy_rows

TEXTS = ["good film", "the song was very good and the book was dull", "dull", "poor meal", "of"]
PROMPT = "Review : the film was good Sentiment : positive Review : "


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A tiny causal LM with an end-of-sequence token, as Hugging Face saves it."""
    path = tmp_path_factory.mktemp(request.param)
    model = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]()
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    with quietly():
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def embedder(folder):
    return causal_embedder(str(folder), dtype=torch.float64, max_seq_length=40, prompts={"query": PROMPT})


# --- Pooling -----------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(["lasttoken", "mean"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_pooling_equals_a_loop_whatever_the_padding(seed, mode, left):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 7, size=4)
    skips = [int(rng.integers(0, n)) for n in lengths]
    width = int(lengths.max()) + int(rng.integers(0, 4))
    tokens, mask = torch.full((4, width, 3), torch.nan), torch.zeros(4, width, dtype=torch.long)
    expected = []
    for i, (n, skip) in enumerate(zip(lengths, skips, strict=True)):
        at = slice(width - n, width) if left else slice(0, n)
        own = torch.from_numpy(rng.standard_normal((n, 3))).float()
        tokens[i, at], mask[i, at] = own, 1
        expected.append(own[-1] if mode == "lasttoken" else own[skip:].mean(dim=0))
    pooling = InstructionPooling(3, mode)
    features = {"token_embeddings": tokens, "attention_mask": mask, "prompt_length": torch.tensor(skips)}
    torch.testing.assert_close(pooling(features)["sentence_embedding"], torch.stack(expected))


def test_pooling_agrees_with_the_librarys():
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokens = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    for mode in ("lasttoken", "mean"):
        for include in (True, False):
            features = {"token_embeddings": tokens, "attention_mask": mask, "prompt_length": 2}
            ours = InstructionPooling(4, mode, include)(dict(features))["sentence_embedding"]
            theirs = Pooling(4, mode, include_prompt=include)(dict(features))["sentence_embedding"]
            torch.testing.assert_close(ours, theirs)


def test_pooling_refuses_what_would_be_silently_wrong():
    tokens, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.long)
    pooling = InstructionPooling(4, "mean")
    with pytest.raises(ValueError, match="row 0 has nothing but the prompt left"):
        pooling({"token_embeddings": tokens, "attention_mask": mask, "prompt_length": 3})
    with pytest.raises(ValueError, match="3 entries for a batch of 2"):
        pooling({"token_embeddings": tokens, "attention_mask": mask, "prompt_length": torch.ones(3)})
    with pytest.raises(ValueError, match="pooling_mode='cls'"):
        InstructionPooling(4, "cls")
    with pytest.raises(ValueError, match="row 1 has no token"):
        InstructionPooling(4)(
            {"token_embeddings": tokens, "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}
        )


def test_half_precision_means_are_summed_in_float32():
    tokens = torch.ones(1, 3000, 2, dtype=torch.bfloat16)
    tokens[:, ::2] = 0.01
    mask = torch.ones(1, 3000, dtype=torch.long)
    found = InstructionPooling(2, "mean")({"token_embeddings": tokens, "attention_mask": mask})
    assert found["sentence_embedding"].dtype == torch.bfloat16
    torch.testing.assert_close(
        found["sentence_embedding"].float(), tokens.float().mean(dim=1), rtol=4e-3, atol=4e-3
    )


# --- The encoder -------------------------------------------------------------------------------------------


def test_a_text_ends_with_eos_and_its_last_state_is_the_vector(embedder):
    tokenizer, network = embedder.tokenizer, embedder[0].model
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            last = network(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = (last / last.norm()).numpy()
        np.testing.assert_allclose(embedder.encode([text])[0], expected, atol=1e-9)
    cut = tokenizer(" ".join(["good"] * 100), truncation=True, max_length=40)["input_ids"]
    assert len(cut) == 40
    assert cut[-1] == tokenizer.eos_token_id


def test_vectors_do_not_depend_on_batch_mates(embedder):
    together = embedder.encode(TEXTS, batch_size=8)
    alone = np.stack([embedder.encode([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-9)
    np.testing.assert_allclose(embedder.encode(TEXTS[::-1], batch_size=2)[::-1], alone, atol=1e-9)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_a_shared_prefix_changes_nothing(folder, pooling):
    model = causal_embedder(str(folder), dtype=torch.float64, max_seq_length=40, pooling_mode=pooling)
    for texts in (TEXTS, TEXTS[:1], ["good film", "good song"], ["good", "good"]):
        for prompt in (PROMPT, None):
            plain = model.encode(texts, prompt=prompt)
            ours = encode_with_prefix(model, texts, prompt, batch_size=2)
            np.testing.assert_allclose(ours, plain, atol=1e-9)


def test_prefix_is_read_once(embedder):
    tokens = []
    network = embedder[0].model
    handle = network.register_forward_pre_hook(
        lambda m, args, kwargs: tokens.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        encode_with_prefix(embedder, TEXTS, prompt_name="query", batch_size=3, check=False)
    finally:
        handle.remove()
    prompt = len(PROMPT.split())
    assert tokens == [(1, prompt), (3, 11), (2, 2)]


def test_what_prefix_encoding_refuses(embedder, tmp_path):
    with pytest.raises(ValueError, match="no texts"):
        encode_with_prefix(embedder, [])
    with pytest.raises(ValueError, match="prompt_name='doc' is none of"):
        encode_with_prefix(embedder, ["a"], prompt_name="doc")
    with pytest.raises(ValueError, match="nothing of the text is left"):
        encode_with_prefix(embedder, ["good"], " ".join(["dull"] * 60))
    bert = tiny_encoder(tmp_path, layers=2)
    both_ways = type(bert)(modules=[bert[0], InstructionPooling(16, "lasttoken")], device="cpu")
    with pytest.raises(ValueError, match=r"keeps no keys|not causal"):
        encode_with_prefix(both_ways, ["sum mean", "sum sort"], "matrix vector ")


def test_saved_and_opened_again(embedder, tmp_path):
    from sentence_transformers import SentenceTransformer

    embedder.save(str(tmp_path / "st"))
    ours = load_embedder(tmp_path / "st")
    assert ours.prompts["query"] == PROMPT
    assert ours.tokenizer.padding_side == "right"
    expected = embedder.encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(ours.encode(TEXTS, prompt_name="query"), expected, atol=1e-6)
    # The library opens it too, if told to trust the class it names.
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name="query"), expected, atol=1e-6)
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    for change, message in (
        ({"type": "os.path.Evil"}, "neither the library's nor ours"),
        ({"path": "../elsewhere"}, "outside itself"),
    ):
        (tmp_path / "st" / "modules.json").write_text(json.dumps([{**modules[0], **change}]))
        with pytest.raises(ValueError, match=message):
            load_embedder(tmp_path / "st")
    with pytest.raises(ValueError, match="no saved sentence encoder"):
        load_embedder(tmp_path)


def test_bad_sources(tmp_path):
    from gradatim.models import CausalLMUnavailableError

    with pytest.raises(CausalLMUnavailableError, match="does not exist"):
        causal_embedder(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CausalLMUnavailableError, match="cannot be opened as an encoder"):
        causal_embedder(str(tmp_path / "empty"))
    llama, tokenizer = tiny_llama(), tiny_tokenizer()  # without an end-of-sequence token
    llama.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        causal_embedder(str(tmp_path / "bare"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
def test_low_rank_adapters(folder, tmp_path):
    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install peft"):
            causal_embedder(str(folder), lora_rank=2)
        return
    model = causal_embedder(str(folder), lora_rank=2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    adapted = model.encode(TEXTS)
    assert np.abs(adapted - causal_embedder(str(folder)).encode(TEXTS)).max() > 1e-2
    np.testing.assert_allclose(
        encode_with_prefix(model, TEXTS, PROMPT), model.encode(TEXTS, prompt=PROMPT), atol=1e-5
    )
    merged = merge_adapters(model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    np.testing.assert_allclose(merged.encode(TEXTS), adapted, atol=1e-5)
    merged.save(str(tmp_path / "merged"))
    np.testing.assert_allclose(load_embedder(tmp_path / "merged").encode(TEXTS), adapted, atol=1e-5)
    with pytest.raises(ValueError, match="lora_rank=0"):
        causal_embedder(str(folder), lora_rank=0)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_it_trains_with_examples_and_is_evaluated_by_the_library(folder, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from gradatim.losses import MultiPositiveRankingLoss

    model = causal_embedder(str(folder), max_seq_length=100)
    prompt = InContextPrompt("good film", [("poor", "dull meal"), ("great", "good trip")], k=1)
    words = ["film", "meal", "song", "trip", "book", "music", "sport", "morning"]
    queries = [f"good {w}" for w in words]
    data = Dataset.from_dict(
        {"query": queries, "doc_1": [f"the {w}" for w in words], "doc_2": ["dull"] * 8, "label": [[1, 0]] * 8}
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=70,
        per_device_train_batch_size=8,
        learning_rate=4e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    evaluator = InformationRetrievalEvaluator(
        {str(i): q for i, q in enumerate(queries)},
        {str(i): f"the {w}" for i, w in enumerate(words)},
        {str(i): {str(i)} for i in range(8)},
        mrr_at_k=[10],
        query_prompt=prompt.prefix(),
        show_progress_bar=False,
        write_csv=False,
    )
    model.prompts.update(prompt.as_st_prompts())
    before = evaluator(model)["cosine_mrr@10"]
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        data,
        loss=MultiPositiveRankingLoss(model, objective="infonce"),
        data_collator=InContextCollator(model.preprocess, in_context=prompt),
    )
    trainer.train()
    after = evaluator(model)["cosine_mrr@10"]
    assert after > before + 0.2
    assert collate(model, toy_rows(2, 2))[1].shape == (2, 2)
