"""SEAL over a folder: a token index per shard, and a small generator trained on the folder's own titles."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradatim.inference.search.code_building import CodeState
from gradatim.inference.search.codes import STALE
from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.files import CheckedFolder, Manifest
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import shard_name

GENERATOR = "generator"
TOKENS = "tokens.index"
VOCABULARY = 8000
WIDTH, LAYERS, HEADS, CONTEXT = 128, 2, 4, 320
BATCH = 48
FEWEST_STEPS, MOST_STEPS = 100, 1200


def build_seal(
    index: Path,
    generation: str,
    shards: Sequence[Sequence[StoredPassage]],
    settings: IndexSettings,
    old: Manifest | None,
    on_progress: Progress,
) -> CodeState:
    """Write every shard's token index and, without `settings.seal_model`, the generator.

    A generator made before stays while at most a fifth of the passages are new since.
    """
    from gradatim.inference.index_text import token_lists, vocabulary_size
    from gradatim.inference.token_index import TokenIndex

    passages = [passage for shard in shards for passage in shard]
    home = index / generation / "shared" / GENERATOR
    state = CodeState(len(passages), 0)
    if settings.seal_model:
        _, tokenizer = load_generator(settings.seal_model)
    elif (kept := _kept(index, old, settings, passages)) is not None:
        folder, state = kept
        shutil.copytree(folder, home)
        _, tokenizer = load_generator(str(home))
    else:
        home.mkdir(parents=True, exist_ok=True)
        tokenizer = train_generator(passages, home, settings.device, on_progress)
    for number, shard in enumerate(shards):
        on_progress("indexing tokens", number, len(shards))
        if shard:
            lists = token_lists((passage.whole for passage in shard), tokenizer)
            built = TokenIndex.build(lists, vocab_size=vocabulary_size(tokenizer))
            built.save(index / generation / shard_name(number) / TOKENS)
    on_progress("indexing tokens", len(shards), len(shards))
    return state


def load_generator(name: str) -> tuple[Any, Any]:
    """Model and tokenizer. Raises SearchError for what is no causal language model."""
    from gradatim.models.causal_lm import CausalLMUnavailableError, load_causal_lm

    try:
        return load_causal_lm(name)
    except CausalLMUnavailableError as error:
        raise SearchError(str(error)) from error


def train_generator(
    passages: Sequence[StoredPassage], folder: Path, device: str | None, on_progress: Progress
) -> Any:
    """Train a GPT-2 of two layers to write spans of a passage for its title; returns its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gradatim.tasks import PairCollator, SpanPairs

    tokenizer = _tokenizer([passage.whole for passage in passages])
    bodies = {str(i): passage.text for i, passage in enumerate(passages) if passage.text.split()}
    titled = [(passages[int(name)].title, name) for name in bodies if passages[int(name)].title]
    pairs = SpanPairs(titled, bodies, n=2)
    collate = PairCollator(tokenizer, max_source=CONTEXT // 2, max_target=32)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    steps = min(MOST_STEPS, max(FEWEST_STEPS, len(pairs) // BATCH))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
                bos_token_id=1, eos_token_id=1, pad_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
        model.to(where)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
        model.train()
        for step in range(steps):
            drawn = [order[(step * BATCH + i) % len(order)] for i in range(BATCH)]
            batch = {k: v.to(where) for k, v in collate([pairs[i] for i in sorted(drawn)]).items()}
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            on_progress("training generator", step + 1, steps)
    _save(model.eval().cpu(), tokenizer, folder)
    return tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from gradatim.models.quiet import quietly

    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-pair encoding of the folder's own words: any text has ids, frequent words have one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=["<pad>", "<end>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<end>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _kept(
    index: Path, old: Manifest | None, settings: IndexSettings, passages: Sequence[StoredPassage]
) -> tuple[Path, CodeState] | None:
    """The old generator's folder, while it still knows most of the passages."""
    from gradatim.inference.search.shard import Shard

    if old is None or "seal" not in old.settings.get("methods", ()) or old.settings.get("seal_model"):
        return None
    state: Any = old.settings.get("generator")
    if not isinstance(state, dict):
        return None
    known = {p.whole for n in range(old.shards) for p in Shard(index, old, n).passages}
    new = int(state["new"]) + sum(p.whole not in known for p in passages)
    if new > STALE * int(state["trained"]):
        return None
    return CheckedFolder(index, old, "shared").folder(GENERATOR), CodeState(int(state["trained"]), new)
