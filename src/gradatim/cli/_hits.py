"""Hits on the terminal: file, place, title, the telling stretch of the passage with its words marked."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from gradatim.inference.search.searching import Answer, Hit

_ACTED_ON = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that no terminal acts on and any encoding can print."""
    return _ACTED_ON.sub("\ufffd", text.encode("utf-8", "replace").decode())


def print_answer(answer: Answer, full: bool) -> None:
    """Draw an answer on standard output."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    for hit in answer.hits:
        line = Text(f"{hit.rank:>2}  ", style="bold")
        line.append(place(hit), style="bold cyan")
        line.append(f"  {printable(hit.title)}" if hit.title else "")
        line.append(f"  {hit.score:.4g}", style="dim")
        console.print(line, soft_wrap=True)
        shown = _marked(hit, full)
        if console.is_terminal:
            console.print(Padding(shown, (0, 0, 0, 4)))
        else:
            console.print(textwrap.indent(shown.plain, "    "), soft_wrap=True, markup=False)
        console.print()
    how = answer.method + (f", re-ranked by {printable(answer.rerank)}" if answer.rerank else "")
    note = f"; {answer.note}" if answer.note else ""
    console.print(Text(f"{len(answer.hits)} hits, {how}, {1000 * answer.seconds:.0f} ms{note}", style="dim"))


def place(hit: Hit) -> str:
    """Where a hit stands: `file:line`, or the page."""
    if hit.page is not None:
        return f"{printable(hit.file)} p. {hit.page}"
    return printable(hit.file) + (f":{hit.line}" if hit.line is not None else "")


def _marked(hit: Hit, full: bool) -> Text:
    from rich.text import Text

    from gradatim.inference.search.highlight import excerpt

    begin, end = (0, len(hit.text)) if full else excerpt(hit.text, list(hit.highlights))
    while begin < end and hit.text[begin].isspace() and begin:
        begin += 1
    shown = Text("… " if begin else "")
    at = begin
    for start, stop in hit.highlights:
        if start < begin or stop > end:
            continue
        shown.append(_dense(hit.text[at:start]))
        shown.append(printable(hit.text[start:stop]), style="bold yellow")
        at = stop
    shown.append(_dense(hit.text[at:end]).rstrip() + (" …" if end < len(hit.text) else ""))
    return shown


def _dense(text: str) -> str:
    """Without empty lines."""
    return re.sub(r"\n\s*\n", "\n", printable(text))
