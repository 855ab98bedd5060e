"""SEAL over a folder: a token index per shard, and a small generator that the folder itself trains."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradatim.inference.search.code_building import CodeState
from gradatim.inference.search.codes import STALE
from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.files import CheckedFolder, Manifest
from gradatim.inference.search.own_questions import own_question
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import shard_name

GENERATOR = "generator"
TOKENS = "tokens.index"
VOCABULARY = 8000
BATCH = 48
FEWEST_STEPS, MOST_STEPS = 100, 600


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
    """Train a GPT-2 of two layers on the folder's own questions and its passages; returns its tokenizer.

    A first sentence and a title ask for spans of the passage they belong to; every passage also asks for
    itself by ten of its words (`tasks.span_pairs`).
    """
    from gradatim.models.quiet import quietly
    from gradatim.models.span_generator import byte_pair_tokenizer, train_span_generator
    from gradatim.tasks import SpanPairs

    tokenizer = byte_pair_tokenizer((passage.whole for passage in passages), VOCABULARY)
    bodies: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    for i, passage in enumerate(passages):
        question, rest = own_question(passage) or (passage.title, passage.text)
        if rest.split():
            bodies[str(i)] = rest
            asked += [(words, str(i)) for words in dict.fromkeys((question, passage.title)) if words]
    pairs = SpanPairs(asked, bodies, n=2)
    steps = min(MOST_STEPS, max(FEWEST_STEPS, len(pairs) // BATCH))
    model = train_span_generator(
        pairs,
        tokenizer,
        steps=steps,
        batch_size=BATCH,
        device=device,
        on_step=lambda step: on_progress("training generator", step, steps),
    )
    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return tokenizer


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
