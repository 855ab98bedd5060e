"""Texts with classes, and the prompts that ask a language model for the class.

`statements("sentiment")`, `"topic"` and `"entailment"` are sentences written for this package (CC0), 64 per
class. `read_text_classification` reads a user's own TSV or JSONL file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Formatter
from types import MappingProxyType

import numpy as np

STATEMENTS: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "sentiment": (
            "Review: {text}\nSentiment:{label}",
            {"positive": " positive", "negative": " negative"},
        ),
        "topic": (
            "News: {text}\nTopic:{label}",
            {"sports": " sports", "business": " business", "science": " science", "food": " food"},
        ),
        "entailment": ("{text}\nTrue or false:{label}", {"true": " true", "false": " false"}),
    }
)
DEFAULT_TEMPLATE = "Text: {text}\nLabel:{label}"


@dataclass(frozen=True)
class PromptTemplate:
    """How a text and its label are written, and what stands between two examples.

    `pattern` holds {text} once and ends with {label}; nothing else may stand in braces. Texts are data:
    braces inside a text are never read as fields.

    Raises ValueError for any other pattern.
    """

    pattern: str = DEFAULT_TEMPLATE
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.pattern))
        except ValueError as error:
            raise ValueError(f"template {self.pattern!r} has unbalanced braces") from error
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        if sorted(fields, key=str) != [("label", "", None), ("text", "", None)]:
            raise ValueError(
                f"a template holds {{text}} and {{label}} once each and no other field, got {self.pattern!r}"
            )
        if not self.pattern.endswith("{label}"):
            raise ValueError(
                f"a template ends with {{label}}, where the answer is read, got {self.pattern!r}"
            )

    def question(self, text: str) -> str:
        """The text with the answer left open."""
        return self.example(text, "")

    def example(self, text: str, word: str) -> str:
        """The text with its label's word."""
        return self.pattern.format_map({"text": text, "label": word})

    def prompt(self, examples: Sequence[tuple[str, str]], text: str) -> str:
        """The examples (text, word) in the order given, then the open question."""
        return self.separator.join([*(self.example(t, w) for t, w in examples), self.question(text)])


@dataclass(frozen=True)
class Shots:
    """Demonstrations and test items that share no text."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    test_texts: tuple[str, ...]
    test_labels: tuple[str, ...]


@dataclass(frozen=True)
class TextTask:
    """Texts with classes; `words` says which word stands for a class in a prompt.

    Raises ValueError for unequal lengths, an empty text, one class only, or a class without a word.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    words: Mapping[str, str]
    template: PromptTemplate = field(default_factory=PromptTemplate)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts but {len(self.labels)} labels")
        if any(not text.strip() for text in self.texts):
            raise ValueError(f"text {[bool(t.strip()) for t in self.texts].index(False)} is empty")
        if len(self.classes) < 2:
            raise ValueError(f"classification needs two classes, got {list(self.classes)}")
        missing = [c for c in self.classes if c not in self.words]
        if missing:
            raise ValueError(f"no word for label {missing[0]!r}; words are given for {sorted(self.words)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in order of first appearance in `words`, then of the data."""
        present = dict.fromkeys(self.labels)
        return tuple(dict.fromkeys([c for c in self.words if c in present] + list(present)))

    def __len__(self) -> int:
        return len(self.texts)

    def draw(self, shots: int, items: int, seed: int) -> Shots:
        """`shots` demonstrations and `items` test items, each as evenly over the classes as they divide.

        What remains of a division goes to classes drawn at random; demonstrations come in random order.
        The draw depends on the seed alone. Raises ValueError where a class has too few texts.
        """
        if shots < 1 or items < 1:
            raise ValueError(f"shots and items must be at least 1, got {shots} and {items}")
        rng = np.random.default_rng([17, seed])
        labels = np.array(self.labels)
        pools = {c: list(rng.permutation(np.flatnonzero(labels == c))) for c in self.classes}
        distinct: dict[str, int] = {}
        for c in self.classes:  # a text that occurs twice must not be both shown and asked
            pools[c] = [i for i in pools[c] if distinct.setdefault(self.texts[i], int(i)) == i]
        chosen = []
        for count in (shots, items):
            picked: list[int] = []
            extra = set(rng.permutation(len(self.classes))[: count % len(self.classes)].tolist())
            for k, c in enumerate(self.classes):
                need = count // len(self.classes) + (k in extra)
                if len(pools[c]) < need:
                    raise ValueError(
                        f"class {c!r} of {self.name} has too few texts for {shots} shots and {items} items"
                    )
                picked += [int(pools[c].pop()) for _ in range(need)]
            chosen.append([picked[i] for i in rng.permutation(count)])
        shown, asked = chosen
        return Shots(
            tuple(self.texts[i] for i in shown),
            tuple(self.labels[i] for i in shown),
            tuple(self.texts[i] for i in asked),
            tuple(self.labels[i] for i in asked),
        )


def statements(name: str = "sentiment") -> TextTask:
    """Our own sentences: "sentiment" (2 classes), "topic" (4) or "entailment" (2), 64 per class, CC0."""
    if name not in STATEMENTS:
        raise ValueError(f"no statements {name!r}; there are {', '.join(STATEMENTS)}")
    pattern, words = STATEMENTS[name]
    text = files("gradatim.tasks").joinpath("statements", f"{name}.tsv").read_text(encoding="utf-8")
    rows = [pair for _, pair in _tsv_rows(text.splitlines(), f"{name}.tsv")]
    return TextTask(
        name, tuple(t for t, _ in rows), tuple(c for _, c in rows), words, PromptTemplate(pattern)
    )


def read_text_classification(
    path: str | Path,
    *,
    words: Mapping[str, str] | None = None,
    template: PromptTemplate | None = None,
) -> TextTask:
    """A user's file, one item per line, UTF-8.

    - `.tsv`, `.txt`: `text<TAB>label`; a first line `text<TAB>label` is a heading.
    - `.jsonl`, `.json`: `{"text": "...", "label": "..."}`, the label text or a whole number.

    `words` maps a label to its word in the prompt, usually with a leading space ({"0": " negative"}); labels
    themselves are the words, after a space, where it is left out. Raises ValueError that names file and line.
    """
    file = Path(path)
    read = {".tsv": _tsv_rows, ".txt": _tsv_rows, ".jsonl": _jsonl_rows, ".json": _jsonl_rows}
    if file.suffix not in read:
        raise ValueError(f"{file.name}: expected a .tsv or .jsonl file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{file.name}, line {line}: not UTF-8") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    rows = list(read[file.suffix](lines, file.name))
    if not rows:
        raise ValueError(f"{file.name} holds no items")
    given = dict(words) if words is not None else {c: f" {c}" for _, (_, c) in rows}
    for line, (_, label) in rows:
        if label not in given:
            raise ValueError(
                f"{file.name}, line {line}: no word for label {label!r}; words name {sorted(given)}"
            )
    if len({label for _, (_, label) in rows}) < 2:
        raise ValueError(f"{file.name} holds one class only, {rows[0][1][1]!r}; classification needs two")
    texts, labels = zip(*(row for _, row in rows), strict=True)
    return TextTask(file.stem, texts, labels, given, template or PromptTemplate())


def _tsv_rows(lines: Sequence[str], name: str) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and [f.strip().lower() for f in fields] == ["text", "label"]):
            continue
        if len(fields) != 2:
            raise ValueError(f"{name}, line {number}: expected text<TAB>label, got {len(fields)} fields")
        yield number, _checked(fields[0], fields[1], name, number)


def _jsonl_rows(lines: Sequence[str], name: str) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(item, dict) or not {"text", "label"} <= item.keys():
            raise ValueError(f'{name}, line {number}: expected {{"text": ..., "label": ...}}')
        text, label = item["text"], item["label"]
        if not isinstance(text, str) or isinstance(label, bool) or not isinstance(label, str | int):
            raise ValueError(
                f"{name}, line {number}: text must be a string, label a string or a whole number"
            )
        yield number, _checked(text, str(label), name, number)


def _checked(text: str, label: str, name: str, number: int) -> tuple[str, str]:
    if not text.strip() or not label.strip():
        raise ValueError(f"{name}, line {number}: {'text' if not text.strip() else 'label'} is empty")
    return text.strip(), label.strip()
