"""An instruction with worked examples, put before a query.

    Instruct: {task}
    Query: {q_1}
    Response: {p_1}

    Instruct: {task}
    Query: {q}

The examples and the instruction are a prefix: the query stands at the end, so the same text is a prompt of
sentence-transformers. Passages carry no instruction.

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438 (structured instruction and few-shot examples in the query);
the wording of the template is ours. Drawing 0 ... K examples in training follows bge-en-icl, 2024, arXiv
2409.15700.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = "Instruct: {task}\nQuery: {query}"
EXAMPLE = "Instruct: {task}\nQuery: {query}\nResponse: {passage}\n\n"
FILE = "in_context_prompt.json"

Count = Callable[[str], int]
"""How many tokens a text has."""


@dataclass(frozen=True)
class InContextPrompt:
    """A task's instruction, its pool of examples, and how they are written.

    Args:
        task: one sentence that says what to look for.
        examples: (query, passage) pairs; from training data only.
        k: how many examples are shown when nothing is drawn, and the most that are drawn.
        template: ends with {query}; example_template holds {query} and {passage}; both may hold {task}.
        max_example_tokens: passages of examples are cut to so many tokens (words, without a tokenizer).
        ids: per example the ids of its query and passage, for `check_leak`.
        tokenizer: a Hugging Face tokenizer to count and cut with. Not saved.

    Raises ValueError for an empty task, k out of range, templates without their fields, ids of another
    number.
    """

    task: str
    examples: Sequence[Sequence[str]] = ()
    k: int = 2
    template: str = TEMPLATE
    example_template: str = EXAMPLE
    max_example_tokens: int = 64
    ids: Sequence[Sequence[str]] = ()
    tokenizer: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple((str(q), str(p)) for q, p in self.examples))
        object.__setattr__(self, "ids", tuple((str(q), str(p)) for q, p in self.ids))
        if not self.task.strip():
            raise ValueError("task is empty; say in one sentence what to look for")
        if self.k < 0 or self.max_example_tokens < 1:
            raise ValueError(
                f"k={self.k} must be at least 0 and max_example_tokens={self.max_example_tokens} at least 1"
            )
        if not self.template.endswith("{query}") or self.template.count("{query}") != 1:
            raise ValueError(f"template={self.template!r} must end with {{query}}, and name it once")
        if "{query}" not in self.example_template or "{passage}" not in self.example_template:
            raise ValueError(
                f"example_template={self.example_template!r} must hold {{query}} and {{passage}}"
            )
        if self.ids and len(self.ids) != len(self.examples):
            raise ValueError(f"{len(self.ids)} ids for {len(self.examples)} examples; give one pair each")

    def format(
        self, query: str, rng: np.random.Generator | None = None, max_tokens: int | None = None
    ) -> str:
        """The prompted query: the first k examples, or with `rng` a draw of 0 ... k of the pool.

        An example whose query is this query is never shown. With `max_tokens` examples are left out, the
        first ones first, until the text fits. Raises ValueError where instruction and query alone do not fit.
        """
        return self.prefix(query, rng, max_tokens) + query

    def prefix(
        self, query: str | None = None, rng: np.random.Generator | None = None, max_tokens: int | None = None
    ) -> str:
        """What stands before the query. Without a query, the examples that every query would be given.

        With `max_tokens` and no query, half of the tokens are kept free for it.
        """
        chosen = self._chosen(query, rng)
        head = self._with_task(self.template.removesuffix("{query}"))
        shown = [self._example(*self.examples[i]) for i in chosen]
        if max_tokens is None:
            return "".join(shown) + head
        room = max_tokens if query is not None else max_tokens // 2
        asked = "" if query is None else query
        while shown and self._count("".join(shown) + head + asked) > room:
            shown.pop(0)
        text = "".join(shown) + head
        needed = self._count(text + asked)
        if needed > room:
            what = "instruction and query" if query is not None else "instruction"
            raise ValueError(
                f"{what} need {needed} tokens and {room} are there: the query would be cut; raise "
                "max_seq_length or shorten the task"
            )
        return text

    def as_st_prompts(self, name: str = "query", max_tokens: int | None = None) -> dict[str, str]:
        """For `SentenceTransformer(prompts=...)`: the constant prefix for queries, nothing for documents.

        `encode_query`, `encode(prompt_name="query")` and the evaluators then use it. `max_tokens` is the
        model's
        max_seq_length: the prefix takes at most half of it. An example that equals a query asked later would
        be shown to it: pick examples that nobody asks, or use `format`.
        """
        return {name: self.prefix(max_tokens=max_tokens), "document": ""}

    def check_leak(self, queries: Iterable[str], documents: Iterable[str] = ()) -> None:
        """Raises ValueError if an example's query or passage, by id or text, is among these test items."""
        asked, judged = set(queries), set(documents)
        for i, (query, passage) in enumerate(self.examples):
            own = (*self.ids[i], query, passage) if self.ids else (query, passage)
            found = next((x for x in own if x in asked or x in judged), None)
            if found is not None:
                raise ValueError(
                    f"example {i} holds {found[:60]!r}, a test item; take examples from training data"
                )

    def save(self, path: str | Path) -> Path:
        """Writes JSON: a file, or `in_context_prompt.json` in a folder (put it next to the model)."""
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        fields = {
            "task": self.task,
            "examples": [list(e) for e in self.examples],
            "k": self.k,
            "template": self.template,
            "example_template": self.example_template,
            "max_example_tokens": self.max_example_tokens,
            "ids": [list(i) for i in self.ids],
        }
        file.write_text(json.dumps(fields, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | Path, tokenizer: Any = None) -> InContextPrompt:
        """Reads what `save` wrote. Raises ValueError for a file that is not such a prompt."""
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        wrong = f"{file} holds no in-context prompt"
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{wrong}: it is not JSON ({error})") from None
        known = {"task", "examples", "k", "template", "example_template", "max_example_tokens", "ids"}
        if not isinstance(fields, dict) or "task" not in fields or not set(fields) <= known:
            raise ValueError(f"{wrong}: expected an object with task and at most {', '.join(sorted(known))}")
        texts = ("task", "template", "example_template")
        numbers = ("k", "max_example_tokens")
        if not (
            all(isinstance(fields.get(name, ""), str) for name in texts)
            and all(type(fields.get(name, 0)) is int for name in numbers)
            and all(_pairs(fields.get(name, [])) for name in ("examples", "ids"))
        ):
            raise ValueError(f"{wrong}: a field has a wrong type")
        pairs: dict[str, Any] = {
            name: tuple(tuple(p) for p in fields.pop(name, ())) for name in ("examples", "ids")
        }
        return cls(**fields, **pairs, tokenizer=tokenizer)

    def _chosen(self, query: str | None, rng: np.random.Generator | None) -> Sequence[int]:
        pool = [i for i, (q, _) in enumerate(self.examples) if q != query]
        if rng is None:
            return pool[: self.k]
        count = int(rng.integers(0, min(self.k, len(pool)) + 1))
        return [pool[i] for i in rng.permutation(len(pool))[:count]]

    def _example(self, query: str, passage: str) -> str:
        values = {"query": query, "passage": self._cut(passage)}
        text = self.example_template
        for name in values:
            text = text.replace("{" + name + "}", f"\0{name}\0")
        # Texts go in last and in one pass: braces in them stay as they are.
        return re.sub("\0(query|passage)\0", lambda found: values[found[1]], self._with_task(text))

    def _with_task(self, template: str) -> str:
        return template.replace("{task}", self.task)

    def _cut(self, passage: str) -> str:
        if self.tokenizer is None:
            words = passage.split()
            return (
                passage
                if len(words) <= self.max_example_tokens
                else " ".join(words[: self.max_example_tokens])
            )
        found = self.tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = found["offset_mapping"]
        if len(offsets) <= self.max_example_tokens:
            return passage
        return passage[: offsets[self.max_example_tokens - 1][1]]

    def _count(self, text: str) -> int:
        if self.tokenizer is None:
            return len(text.split())
        return len(self.tokenizer(text, verbose=False)["input_ids"])


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in value
    )
