"""JSON Lines: one document a line, as in BEIR's corpus.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gradatim.tasks.documents.decoding import clean, decode
from gradatim.tasks.documents.passages import Passage, UnreadableError, join_titles, pack, paragraphs

TEXT_FIELDS = ("text", "contents", "content", "body", "passage")
ID_FIELDS = ("_id", "id", "docid", "name")


def read_json_lines(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of each line's text, titled by its title, else its id.

    Lines that are no JSON object or have no text are left out; a file without one good line raises
    UnreadableError.
    """
    found = False
    for number, line in enumerate(decode(data).split("\n"), 1):
        row = _row(line)
        text = next((row[f] for f in TEXT_FIELDS if isinstance(row.get(f), str)), "")
        if not text.strip():
            continue
        said = row.get("title")
        identity = next((str(row[f]) for f in ID_FIELDS if isinstance(row.get(f), str | int)), "")
        title = said if isinstance(said, str) and said.strip() else identity
        found = True
        for passage in pack(paragraphs(clean(text)), join_titles(clean(title) or name, "")):
            yield replace(passage, line=number, end_line=number, start=None, end=None)
    if not found:
        raise UnreadableError(f"no line is a JSON object with a field {' or '.join(TEXT_FIELDS[:2])}")


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
