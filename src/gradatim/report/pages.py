"""The report folder: an index with the forest plot of all claims, and a page per study.

Every page is one file that needs nothing beside it: style and script are inside, and a content policy
forbids the browser to load anything else. Everything that comes from a study is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from gradatim.bench.statistics import Estimate
from gradatim.bench.study import Study, Table
from gradatim.bench.summary import StudyReport
from gradatim.bench.verdict import Verdict
from gradatim.report import formatting, prose
from gradatim.report.folder import replace_folder
from gradatim.report.forest import Axis, Row, axis_for, row
from gradatim.report.plots import arm_plots, curve_plots, metrics_table, study_plots
from gradatim.report.svg import clean

WORDS = ("reproduced", "not reproduced", "inconclusive")
CONTROL_WORDS = ("survives", "explained away", "undecided")


@dataclass(frozen=True)
class ClaimView:
    """One claim as the templates show it."""

    verdict: Verdict
    row: Row
    anchor: str
    effect: formatting.Shown
    control: formatting.Shown
    sentence: str
    spoken: str


@dataclass(frozen=True)
class PaperView:
    """One study's report as the templates show it."""

    report: StudyReport
    file: str
    key: str
    number: str
    claims: Sequence[ClaimView]

    @property
    def study(self) -> Study:
        return self.report.study


def write_report(
    reports: Sequence[StudyReport],
    folder: Path,
    *,
    title: str = "Which published claims hold here",
    command: str = "gradatim run",
    others: Sequence[Study] = (),
) -> Path:
    """Write the report folder and return its `index.html`.

    `command` is what made the report; `others` are studies that it leaves out, to be listed with the
    command that runs them. The folder is replaced as a whole.

    Raises ReportError when `folder` holds something else or cannot be written.
    """
    axis = axis_for(v for r in reports for v in r.verdicts)
    papers = _papers(reports, axis)
    files = {"index.html": _index(papers, axis, title, command, others)}
    for paper in papers:
        files[f"{paper.file}.html"] = _page(paper, axis, title)
        files[f"data/{paper.file}.json"] = json.dumps(paper.report.to_json(), indent=1, default=str) + "\n"
    replace_folder(folder, {name: clean(text) for name, text in files.items()})
    return folder / "index.html"


def _papers(reports: Sequence[StudyReport], axis: Axis) -> list[PaperView]:
    ordered = sorted(reports, key=lambda r: (r.study.number is None, r.study.number or 0, r.study.slug))
    taken = {"index"}
    papers = []
    for i, report in enumerate(ordered):
        stem = _file_stem(report.study.slug)
        name = next(n for n in _names(stem, report.profile) if n not in taken)
        taken.add(name)
        number = "" if report.study.number is None else f"{report.study.number:02d}"
        claims = [_claim(v, axis, f"claim-{j + 1}") for j, v in enumerate(report.verdicts)]
        papers.append(PaperView(report, name, f"s{i}", number, claims))
    return papers


def _names(stem: str, profile: str) -> Any:
    yield stem
    yield f"{stem}-{_file_stem(profile)}"
    yield from (f"{stem}-{n}" for n in range(2, 10_000))


def _file_stem(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "study"


def _claim(v: Verdict, axis: Axis, anchor: str) -> ClaimView:
    return ClaimView(
        v,
        row(v, axis),
        anchor,
        formatting.shown(v.estimate),
        formatting.shown(v.control.estimate),
        prose.sentence(v),
        _spoken(v),
    )


def _spoken(v: Verdict) -> str:
    """What a screen reader says in place of a row's drawing."""
    parts = [f"Our effect {_standardised(v.estimate)}", f"control {_standardised(v.control.estimate)}"]
    if v.claim.paper is not None:
        parts.append(f"the paper's figure {formatting.number(v.claim.paper, signed=True)} {v.claim.unit}")
    return "; ".join(parts) + "."


def _standardised(e: Estimate) -> str:
    if e.mean is None:
        return "not measured"
    if e.low is None:
        return "from one seed, without interval"
    d = e.standardized
    if d is None:
        return f"exactly {formatting.number(e.mean, signed=True)} at every seed"
    s = formatting.rounded(*d)
    return f"{s.mean} standard deviations, 95% interval {s.low} to {s.high}"


def _index(papers: Sequence[PaperView], axis: Axis, title: str, command: str, others: Sequence[Study]) -> str:
    verdicts = [c.verdict for p in papers for c in p.claims]
    environments = [dict(p.report.environment) for p in papers]
    same = bool(environments) and all(e == environments[0] for e in environments)
    return render_page(
        "index.html.jinja",
        title=title,
        papers=papers,
        axis=axis,
        command=command,
        others=others,
        counts={w: sum(v.word == w for v in verdicts) for w in WORDS},
        control_counts={w: sum(v.control.word == w for v in verdicts) for w in CONTROL_WORDS},
        stands=sum(v.word == "reproduced" and v.control.word == "survives" for v in verdicts),
        rooms=sorted({room for p in papers for room in p.study.rooms}),
        trials=sum(_trials(p.report) for p in papers),
        failed=sum(len(p.report.failed) for p in papers),
        missing=sum(p.report.missing for p in papers),
        seconds=sum(p.report.seconds for p in papers),
        measured=max((p.report.measured for p in papers), default=""),
        profiles=sorted({p.report.profile for p in papers}),
        environment=_flat(environments[0]) if same else [],
    )


def _page(paper: PaperView, axis: Axis, title: str) -> str:
    report, study = paper.report, paper.study
    arms = [a for a in study.arms if a.name in report.results.outcomes]
    estimates = {a.name: report.arm_estimates(a) for a in arms}
    return render_page(
        "paper.html.jinja",
        title=title,
        paper=paper,
        report=report,
        study=study,
        axis=axis,
        words=WORDS,
        arm_plots=arm_plots(study, report.results, f"{paper.key}-arms"),
        curve_plots=curve_plots(study, report.results, f"{paper.key}-curves"),
        own_plots=study_plots(study, report.results, f"{paper.key}-own"),
        metrics=metrics_table(arms, estimates) if arms else Table((), ()),
        trials=_trials(report),
        environment=_flat(report.environment),
        scale=_flat(report.scale),
        arxiv=prose.arxiv_url(study.paper),
        bibtex=prose.bibtex(study.paper) if study.paper else "",
    )


def _trials(report: StudyReport) -> int:
    return sum(len(by_seed) for by_seed in report.results.outcomes.values())


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            # Package names need no "versions" before each of them.
            rows += _flat(value, prefix if name == "versions" else f"{prefix}{name} ")
        elif isinstance(value, list | tuple):
            rows.append((prefix + name, ", ".join(map(str, value))))
        else:
            rows.append((prefix + name, str(value)))
    return rows


def render_page(template: str, **context: Any) -> str:
    """A template of ours filled in, with style and script inside."""
    environment, style, script = _templates()
    return environment.get_template(template).render(
        style=Markup(style), script=Markup(script), script_hash=_hash(script), **context
    )


@lru_cache(maxsize=1)
def _templates() -> tuple[Environment, str, str]:
    folder = resources.files("gradatim.report") / "templates"
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir()}
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": formatting.number,
        "shown": formatting.shown,
        "p": formatting.probability,
        "duration": formatting.duration,
        "count": lambda n, noun, plural="": formatting.count(n, noun, plural),
        "markdown": lambda text: Markup(prose.markdown(text)),
        "python": lambda code: Markup(prose.python(code)),
        "svg": Markup,
        "slug": lambda text: text.replace(" ", "-"),
        "moment": lambda text: re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*", r"\1 \2 UTC", text),
        "standard": lambda e: formatting.rounded(*e.standardized) if e.standardized else None,
        "bca": lambda e: formatting.rounded(e.mean, e.boot_low, e.boot_high),
        # Marks at the ends of the axis keep their full width inside the cell.
        "pc": lambda at: f"{4 + 92 * at:.2f}%",
    }
    return environment, texts["style.css"], texts["report.js"]


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}"
