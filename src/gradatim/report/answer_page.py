"""A page of its own for a single answer: a headline, a figure, tables, how to read them, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.bench.study import Table
from gradatim.report.folder import replace_folder
from gradatim.report.pages import render_page
from gradatim.report.plots import Plot
from gradatim.report.svg import clean, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A heading, sentences on how to read what follows, and a table; lines are set beneath it."""

    heading: str
    hint: str
    table: Table
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What the page says. `draw` draws on an empty Matplotlib figure of `size` CSS pixels."""

    title: str
    kicker: str
    answer: str
    headline: str
    facts: Sequence[str]
    draw: Callable[[Figure], None]
    size: tuple[float, float]
    figure_title: str
    alt: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()


def write_answer(answer: Answer, folder: Path, *, document: Mapping[str, Any], command: str) -> Path:
    """Write `index.html` and `answer.json` (the `document`) to a folder of their own; returns the page.

    Raises ReportError when `folder` holds something that is not a report of ours.
    """
    svg = render(answer.draw, answer.size, "answer", answer.figure_title, answer.alt)
    plot = Plot(answer.figure_title, answer.alt, svg, Table((), ()))
    page = render_page("answer.html.jinja", title=answer.title, page=answer, plot=plot, command=command)
    text = json.dumps(dict(document), indent=1) + "\n"
    replace_folder(folder, {"index.html": clean(page), "answer.json": text})
    return folder / "index.html"
