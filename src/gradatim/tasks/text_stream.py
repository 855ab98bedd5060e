"""Running text as one stream of character ids, cut into training, validation and test parts.

Nothing is downloaded: "topics" are Python's own help texts, "docstrings" the documentation of the installed
packages with those texts, and any UTF-8 file, JSON Lines file or folder of text files of the user's too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gradatim.tasks.docstrings import docstring_texts, sha256_of

Split = Literal["train", "valid", "test"]

UNKNOWN = "�"
"""What a character that the stream never had is read as: id 0 of every stream."""

_SHARES = (0.8, 0.9)
_SHORTEST = 1_000


@dataclass(frozen=True)
class TextStream:
    """A text as character ids, in three contiguous parts: the first 80%, the next 10%, the last 10%.

    name        what was read
    characters  the vocabulary: id i is `characters[i]`; id 0 stands for characters never seen
    train, valid, test  [length] ids
    digest      SHA-256 of the text

    The vocabulary is that of the whole text, so a part can hold a character that training never shows; it
    costs what any id unseen in training costs.
    """

    name: str
    characters: tuple[str, ...]
    train: Int[Tensor, " train"]
    valid: Int[Tensor, " valid"]
    test: Int[Tensor, " test"]
    digest: str
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {c: i for i, c in enumerate(self.characters)})

    @property
    def vocab_size(self) -> int:
        """Number of characters, the unknown one among them."""
        return len(self.characters)

    def encode(self, text: str) -> Int[Tensor, " length"]:
        """Ids of a text; characters that the stream does not have become 0."""
        return torch.tensor([self._ids.get(c, 0) for c in text], dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text of ids of any shape, read in order."""
        return "".join(self.characters[int(i)] for i in ids.flatten())

    def windows(
        self, split: Split, count: int, length: int, generator: torch.Generator
    ) -> Int[Tensor, "count length"]:
        """`count` windows of `length` ids, their starts uniform over the part and independent.

        For next-character training ask for context + 1 and use `[:, :-1]` and `[:, 1:]`.
        Raises ValueError where the part is shorter than a window.
        """
        part = self._part(split, length)
        starts = torch.randint(len(part) - length + 1, (count, 1), generator=generator)
        return part[starts + torch.arange(length)]

    def chunks(self, split: Split, length: int, limit: int | None = None) -> Int[Tensor, "count length"]:
        """The part cut into neighbouring windows, the rest dropped; with `limit`, that many spread evenly."""
        part = self._part(split, length)
        count = len(part) // length
        cut = part[: count * length].view(count, length)
        if limit is None or limit >= count:
            return cut
        return cut[torch.linspace(0, count - 1, limit, dtype=torch.float64).round().long()]

    def _part(self, split: Split, length: int) -> Tensor:
        part: Tensor = {"train": self.train, "valid": self.valid, "test": self.test}[split]
        if not 1 <= length <= len(part):
            raise ValueError(
                f"a window of {length} characters does not fit the {split} part of {self.name!r}, which has "
                f"{len(part)}: use a shorter context or more text"
            )
        return part


@lru_cache(maxsize=4)
def text_stream(source: str | Path = "topics") -> TextStream:
    """A stream from "topics", "docstrings" or a path.

    A path is a UTF-8 text file, a `.jsonl` file of {"text": ...} lines, or a folder whose `.txt` files are
    read in order of name. Line ends become "\\n"; texts are joined by a blank line.

    Raises FileNotFoundError where there is no such path, ValueError for text that is not UTF-8, a line
    without "text", or fewer than 1,000 characters.
    """
    text = _BUILT_IN[str(source)]() if str(source) in _BUILT_IN else _read(Path(source))
    if len(text) < _SHORTEST:
        raise ValueError(
            f"{str(source)!r} holds {len(text)} characters; a language model needs at least {_SHORTEST:,}"
        )
    return _from_text(str(source), text)


def _from_text(name: str, text: str) -> TextStream:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    present, inverse = np.unique(points, return_inverse=True)
    known = [chr(p) for p in present if chr(p) != UNKNOWN]
    number = {c: i + 1 for i, c in enumerate(known)}
    table = np.array([number.get(chr(p), 0) for p in present], dtype=np.int64)
    ids = torch.from_numpy(table[inverse])
    first, second = (int(share * len(ids)) for share in _SHARES)
    return TextStream(
        name=name,
        characters=(UNKNOWN, *known),
        train=ids[:first],
        valid=ids[first:second],
        test=ids[second:],
        digest=sha256_of([text]),
    )


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text.strip() for _, text in sorted(topics.items()))


def _docstrings() -> str:
    return "\n\n".join(docstring_texts().texts)


_BUILT_IN = {"topics": _topics, "docstrings": _docstrings}


def _read(path: Path) -> str:
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise FileNotFoundError(f"no .txt files in {path}")
        return "\n\n".join(_read(file) for file in files)
    if not path.is_file():
        known = ", ".join(repr(name) for name in _BUILT_IN)
        raise FileNotFoundError(f"no text at {str(path)!r}: give a file, a folder of .txt files, or {known}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it first") from error
    return "\n\n".join(_json_texts(path, text)) if path.suffix == ".jsonl" else text


def _json_texts(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}, line {number}: needs {{"text": "..."}}')
        yield row["text"]
