"""Asking SEAL: a generator writes n-grams of the folder, and these name the passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.seal_building import TOKENS, load_generator
from gradatim.inference.search.shard import Scored, Shard, merge

BEAMS, NGRAM = 5, 5
COPYING = 0.3
"""Share of the question's own n-grams in what is expected: see `SEALRetriever`. Longer n-grams, more beams
and single tokens cost time and changed nothing, or worse, on questions that folders ask themselves."""


class SealSearch:
    """The token indexes of an index's shards as one, with the generator.

    Shards of one file system are opened here: decoding asks for ranges of n-grams many hundred times.
    """

    def __init__(self, shards: Sequence[Shard], generator: str, device: str | None) -> None:
        from gradatim.inference.index_file import IndexFormatError
        from gradatim.inference.seal_retriever import SEALRetriever
        from gradatim.inference.sharded_index import ShardedTokenIndex
        from gradatim.inference.token_index import TokenIndex

        self.shards = [shard for shard in shards if len(shard.passages)]
        paths = [shard.files.path(TOKENS) for shard in self.shards]
        try:
            index: Any = TokenIndex.load(paths[0]) if len(paths) == 1 else ShardedTokenIndex(paths)
        except (IndexFormatError, IndexError) as error:
            raise IndexDamagedError(f"{error}; make the index again") from error
        if index.n_documents != sum(len(shard.passages) for shard in self.shards):
            raise IndexDamagedError("the token index has other passages; make the index again")
        model, tokenizer = load_generator(generator)
        self._retriever = SEALRetriever.from_index(
            index,
            model.to(device) if device else model,
            tokenizer,
            num_beams=BEAMS,
            ngram_length=NGRAM,
            copying=COPYING,
            unigrams=0,
        )

    def __call__(self, question: str, k: int) -> list[Scored]:
        """The best `k` passages: the same for any number of shards, unless over 50 tie for the last place.

        Raises IndexDamagedError where the token index or the generator cannot be used after all: a forger's
        have good checksums.
        """
        # More than k: passages of equal score then come in the order of files, for any number of shards.
        try:
            (found,) = self._retriever.search_documents([question], k + 50)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise IndexDamagedError(
                f"the token index or the generator cannot be used ({reason}); make the index again"
            ) from error
        return merge([[(float(one.score), self._passage(int(one.doc))) for one in found]], k)

    def _passage(self, number: int) -> StoredPassage:
        for shard in self.shards:
            if number < len(shard.passages):
                return shard.passages[number]
            number -= len(shard.passages)
        raise IndexDamagedError("the token index names an unknown passage; make the index again")
