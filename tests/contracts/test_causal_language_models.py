"""What Transformers asks of a causal language model, of all of ours, as of one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from gradatim.models import (
    EnergyTransformerConfig,
    EnergyTransformerForCausalLM,
    HopeConfig,
    HopeForCausalLM,
    LSTMConfig,
    LSTMForCausalLM,
)

V, T = 17, 6
IDS = torch.randint(1, V, (3, T), generator=torch.Generator().manual_seed(2))
SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}


def energy(recipe: str, **changes: Any) -> PreTrainedModel:
    config = getattr(EnergyTransformerConfig, recipe)(
        **SIZES, num_attention_heads=2, max_position_embeddings=40, step_size=5.0, **changes
    )
    return EnergyTransformerForCausalLM(config, seed=0)


def make(name: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "llama":  # one of their own: what it cannot pass is no contract
        return LlamaForCausalLM(
            LlamaConfig(**SIZES, num_attention_heads=2, intermediate_size=16, eos_token_id=None, **changes)
        )
    if name in ("system1", "system2"):
        return energy(name, **changes)
    if name == "hope":
        return HopeForCausalLM(
            HopeConfig(**SIZES, num_attention_heads=2, initializer_range=0.3, **changes), seed=0
        )
    return LSTMForCausalLM(LSTMConfig(**SIZES, **changes), seed=0)


ALL = pytest.mark.parametrize("name", ["llama", "system1", "system2", "hope", "lstm"])


@pytest.fixture(autouse=True)
def random_state() -> Any:
    with torch.random.fork_rng(devices=[]):
        yield


@ALL
@pytest.mark.parametrize("tied", [False, True])
def test_shards_of_safetensors(name: str, tied: bool, tmp_path: Path) -> None:
    model = make(name, tie_word_embeddings=tied).eval()
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    one, other = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (one is other) == tied
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key
    # Loaded weights lie elsewhere in memory, and large steps of descent amplify the rounding of that.
    torch.testing.assert_close(loaded.eval()(IDS).logits, model(IDS).logits, rtol=1e-3, atol=1e-3)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.get_input_embeddings().weight.dtype == torch.bfloat16
    assert half.dtype == torch.bfloat16
    assert bool(half.eval()(IDS).logits.isfinite().all())


@ALL
def test_more_tokens_leave_the_known_ones_alone(name: str) -> None:
    model = make(name).eval()
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(V + 3)
    assert model.config.vocab_size == V + 3
    assert torch.equal(model.get_input_embeddings().weight[:V], before)
    assert model(IDS).logits.shape == (3, T, V + 3)
    assert model(torch.full((1, 2), V + 2)).logits.shape == (1, 2, V + 3)


@ALL
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "sampled", "beams", "no cache", "processed"],
)
def test_generation(name: str, how: dict[str, Any]) -> None:
    model = make(name).eval()
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    found = model.generate(
        IDS, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True,
        output_scores=True, output_logits=True, **how,
    )  # fmt: skip
    rows = 3 * how.get("num_return_sequences", 1)
    assert found.sequences.shape == (rows, T + 4)
    assert torch.equal(found.sequences[:: rows // 3, :T], IDS)
    assert len(found.scores) == len(found.logits) == 4
    assert found.logits[0].shape[-1] == V
    if how == {"do_sample": False}:
        assert torch.equal(found.sequences[:, T], model(IDS, attention_mask=mask).logits[:, -1].argmax(-1))


@ALL
def test_tuples_and_counted_losses(name: str) -> None:
    model = make(name).eval()
    out = model(IDS, labels=IDS)
    loss, logits, *_ = model(IDS, labels=IDS, return_dict=False)
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(logits, out.logits)
    items = 3 * (T - 1)
    counted = model(IDS, labels=IDS, num_items_in_batch=2 * items).loss
    torch.testing.assert_close(counted, out.loss / 2)


@ALL
def test_the_trainer_trains_saves_and_resumes(name: str, tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(4, 1)]

    def train(folder: str, steps: int, resume: bool = False) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=1e-2,
            report_to=[], use_cpu=True, save_steps=2, logging_steps=1, dataloader_pin_memory=False,
            disable_tqdm=True, seed=0, lr_scheduler_type="constant", gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer = Trainer(make(name), arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train("a", 4)
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    train("b", 2)
    again = train("b", 4, resume=True)
    for (key, a), (_, b) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=key)


@ALL
def test_a_text_generation_pipeline(name: str) -> None:
    words = Tokenizer(models.WordLevel({"<pad>": 0, **{chr(96 + i): i for i in range(1, V)}}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side="left")
    model = make(name).eval()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    found = write(
        ["a b c", "d e f g h"], max_new_tokens=3, do_sample=False, return_full_text=False, batch_size=2
    )
    for prompt, (answer,) in zip(("a b c", "d e f g h"), found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        alone = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        assert answer["generated_text"].split() == tokenizer.decode(alone, skip_special_tokens=True).split()
