"""A text as the arms of `compare language` share it: tokens of three contiguous parts, and their units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradatim.bench.study import Scale
from gradatim.compare.comparison import content_digest
from gradatim.compare.errors import DataError
from gradatim.tasks.text_stream import TextStream, text_stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN = ("topics", "docstrings")
KINDS = ("characters", "bytes")
SHARES = {"train": 0.8, "valid": 0.9, "test": 1.0}


@dataclass(frozen=True)
class LanguageData:
    """Tokens by part, and how many characters and UTF-8 bytes each part has.

    name        what was read
    parts       "train", "valid", "test": [length] ids, the first 80%, the next 10%, the last 10% of the text
    vocab_size  number of tokens, those that never occur among them
    characters, bytes  of each part, for figures that do not depend on the tokens
    used        what was left out, in a sentence; empty where nothing was
    """

    name: str
    parts: Mapping[str, Tensor]
    vocab_size: int
    characters: Mapping[str, int]
    bytes: Mapping[str, int]
    used: str = ""

    def per_character(self, part: str) -> float:
        """Tokens per character."""
        return len(self.parts[part]) / self.characters[part]

    def per_byte(self, part: str) -> float:
        """Tokens per byte."""
        return len(self.parts[part]) / self.bytes[part]

    def chunks(self, part: str, length: int, limit: int) -> Tensor:
        """[count, length]: the part cut into neighbouring windows, `limit` of them at most, spread evenly."""
        ids = self.parts[part]
        count = len(ids) // length
        cut = ids[: count * length].view(count, length)
        if count <= limit:
            return cut
        return cut[torch.linspace(0, count - 1, limit, dtype=torch.float64).round().long()]

    def windows(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """[count, length]: windows of the training part, their starts uniform and independent."""
        ids = self.parts["train"]
        starts = torch.randint(len(ids) - length + 1, (count, 1), generator=generator)
        return ids[starts + torch.arange(length)]


def load(scale: Scale) -> LanguageData:
    """The data of a scale, read once per process. Raises DataError for text that cannot be used."""
    return _load(scale["data"], scale["tokens"], scale["max_characters"], scale["context"])


def source_of(data: str | Path) -> str:
    """How a scale names the data: "topics", "docstrings", or an absolute path."""
    return str(data) if str(data) in BUILT_IN else str(Path(data).absolute())


def tokens_of(tokens: str, tokenizer: str | Path | None) -> str:
    """How a scale names the tokens: "characters", "bytes", or the folder of a tokenizer.

    Raises DataError for an unknown kind, a folder that is not there, or both options at once.
    """
    if tokenizer is not None:
        if tokens != KINDS[0]:
            raise DataError(f"--tokens {tokens} and --tokenizer exclude each other", "give one of them")
        if not Path(tokenizer).is_dir():
            raise DataError(
                "is no folder", "give --tokenizer a folder that save_pretrained wrote", file=tokenizer
            )
        return str(Path(tokenizer).absolute())
    if tokens not in KINDS:
        raise DataError(f'--tokens "{tokens}" is unknown', f"use {' or '.join(KINDS)}, or --tokenizer FOLDER")
    return tokens


def language_digest(scale: Scale) -> str:
    """SHA-256 of the text, of the tokenizer's files, and of how much of the text is read."""
    options = {"max_characters": scale["max_characters"], "text": _stream(scale["data"]).digest}
    options["tokens"] = scale["tokens"] if scale["tokens"] in KINDS else "tokenizer"
    folder = Path(scale["tokens"])
    files = [] if scale["tokens"] in KINDS else sorted(p for p in folder.iterdir() if p.is_file())
    return content_digest(files, options)


def tokenizer_of(scale: Scale) -> PreTrainedTokenizerBase:
    """The tokens as a Hugging Face tokenizer, to be kept beside a model."""
    from transformers import PreTrainedTokenizerFast

    if scale["tokens"] not in KINDS:
        return _tokenizer(scale["tokens"])
    inner = _character_tokenizer(_stream(scale["data"])) if scale["tokens"] == KINDS[0] else _byte_tokenizer()
    unknown = {"unk_token": _stream(scale["data"]).characters[0]} if scale["tokens"] == KINDS[0] else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **unknown)


@lru_cache(maxsize=4)
def _load(data: str, tokens: str, max_characters: int, context: int) -> LanguageData:
    stream = _stream(data)
    ids = torch.cat([stream.train, stream.valid, stream.test])
    total, ids = len(ids), ids[:max_characters]
    bounds = [0, *(int(share * len(ids)) for share in SHARES.values())]
    cut = {name: ids[a:b] for name, a, b in zip(SHARES, bounds[:-1], bounds[1:], strict=True)}
    texts = {name: _text(stream, part) for name, part in cut.items()}
    if tokens == "characters":
        parts, size = cut, stream.vocab_size
    elif tokens == "bytes":
        raw = {name: np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for name, text in texts.items()}
        parts, size = {name: torch.from_numpy(b.astype(np.int64)) for name, b in raw.items()}, 256
    else:
        tokenizer = _tokenizer(tokens)
        encoded = {
            name: tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for name, text in texts.items()
        }
        parts = {name: torch.tensor(found["input_ids"], dtype=torch.int64) for name, found in encoded.items()}
        size = len(tokenizer)
    for name, part in parts.items():
        if len(part) < context + 1:
            raise DataError(
                f"its {name} part has {len(part)} tokens, fewer than --context {context} and one",
                "use a shorter --context or more text",
                file=data,
            )
    shown = f" The first {max_characters:,} of {total:,} characters are used." if total > len(ids) else ""
    return LanguageData(
        name=Path(data).name,
        parts=parts,
        vocab_size=size,
        characters={name: len(text) for name, text in texts.items()},
        bytes={name: len(text.encode("utf-8", "replace")) for name, text in texts.items()},
        used=shown.strip(),
    )


def _stream(data: str) -> TextStream:
    try:
        return text_stream(data)
    except FileNotFoundError as error:
        known = ", ".join(BUILT_IN)
        problem = "holds no .txt files" if Path(data).is_dir() else "does not exist"
        fix = f"give a .txt or .jsonl file, a folder of .txt files, or one of {known}"
        raise DataError(problem, fix, file=data) from error
    except (ValueError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise DataError(f"cannot be used ({reason})", "give other text", file=data) from error


def _text(stream: TextStream, ids: Tensor) -> str:
    points = np.array([ord(c) for c in stream.characters], dtype="<u4")
    return str(points[ids.numpy()].tobytes().decode("utf-32-le", "surrogatepass"))


@lru_cache(maxsize=2)
def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DataError(
            f"holds no tokenizer ({reason})", "give a folder that save_pretrained wrote", file=folder
        ) from error
    return found  # type: ignore[no-any-return]


def _character_tokenizer(stream: TextStream) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(stream.characters)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=stream.characters[0]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # The printable stand-ins that byte-level tokenizers write bytes with: themselves, or from 256 upwards.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    inner = Tokenizer(models.BPE({name: b for b, name in names.items()}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2.0)
