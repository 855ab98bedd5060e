"""Fills `<!-- results: SLUG -->`, `<!-- benchmarks: NAME -->`, `<!-- questions: NAME -->` from results/.

No measured number is typed into a page: a page that names no file in results/ says that nothing has been
measured there yet.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"
PLACE = re.compile(r"^<!-- (results|benchmarks|questions): ([a-z0-9_-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    fill = {"results": _results, "benchmarks": _benchmarks, "questions": _questions}
    return PLACE.sub(lambda m: fill[m[1]](m[2]), markdown)


def _results(slug: str) -> str:
    files = sorted(RESULTS.glob(f"{slug}.*.json"))
    if not files:
        return f"*No results of `{slug}` are committed yet; `gradatim run {slug}` measures them here.*"
    return "\n\n".join(_study(json.loads(f.read_text(encoding="utf-8"))) for f in files)


def _study(d: dict[str, Any]) -> str:
    env = d["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in env.get("versions", {}).items())
    lines = [
        f"### Measured: profile `{d['profile']}`",
        "",
        f"{d['measured'][:10]}, {env.get('processor')}, {env.get('cores')} cores, Python {env.get('python')},"
        f" {versions}; commit {env.get('commit')}; {d['seconds']:.0f} core-seconds. Reproduce it with"
        f" `{d['command']}`.",
        "",
        "| claim | effect, 95% interval | n | p (Holm) | paper | verdict | beside its control |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for v in d["verdicts"]:
        paper = v["paper_says"] or ("" if v["paper"] is None else f"{v['paper']:+.4g}")
        word = v["verdict"] + (
            f"; about {v['seeds_needed']} seeds would settle it" if v["seeds_needed"] else ""
        )
        c = v["control"]
        p = "" if v["p_holm"] is None else f"{v['p_holm']:.2g}"
        lines.append(
            f"| {_cell(v['statement'])} | {_interval(v)} {_cell(v['unit'])} | {v['n']} | {p} | {_cell(paper)}"
            f" | **{word}** | {c['verdict']}: {_interval(c)}. {_cell(c['explanation'])} |"
        )
    names = list(dict.fromkeys(name for arm in d["arms"] for name in arm["metrics"]))
    lines += ["", "<details markdown>"]
    lines += ["<summary>Every arm: mean and 95% interval over seeds</summary>", ""]
    lines += ["| arm | n | " + " | ".join(names) + " |", "| --- | ---: |" + " --- |" * len(names)]
    for arm in d["arms"]:
        cells = [_interval(arm["metrics"][n], sign="") if n in arm["metrics"] else "" for n in names]
        failed = f" ({arm['failed']} failed)" if arm["failed"] else ""
        lines.append(f"| {_cell(arm['arm'])} | {arm['n']}{failed} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "</details>"])


def _benchmarks(name: str) -> str:
    file = RESULTS / "benchmarks" / f"{name}.json"
    if not file.exists():
        return f"*No timings of `{name}` are committed yet; `make bench` measures them here.*"
    d = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"{d['what']} Medians of runs in turn in one process; a ratio above 1 means ours needs less.",
        "",
        "| case | ours | beside | ratio | target |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for r in d["rows"]:
        unit = r.get("unit", "ms")
        lines.append(
            f"| {_cell(r['case'])} | {r['ours_ms']:.4g} {unit}"
            f" | {_cell(r['peer'])}: {r['peer_ms']:.4g} {unit}"
            f" | {r['ratio']:.2f}x | {_cell(str(r['target']))} |"
        )
    return "\n".join(lines)


def _questions(name: str) -> str:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return (
            "*No answers are committed yet; `python benchmarks/search_questions.py` asks the questions here.*"
        )
    d = json.loads(file.read_text(encoding="utf-8"))
    methods = d["methods"]
    versions = ", ".join(f"{k} {v}" for k, v in d["versions"].items())
    lines = [
        f"{d['files']:,} files, {d['passages']:,} passages ({versions}).",
        "",
        "| question | " + " | ".join(f"{m}: rank" for m in methods) + " |",
        "| --- |" + " ---: |" * len(methods),
    ]
    for q in d["questions"]:
        ranks = [q["answers"][m]["rank"] for m in methods]
        cells = [str(r) if r else f"beyond {d['looked_at']}" for r in ranks]
        lines.append(f"| {_cell(q['question'])} | " + " | ".join(cells) + " |")
    asked = len(d["questions"])
    for word, most in (("first", 1), ("among the first 3", 3), ("among the first 10", 10)):
        found = [sum((q["answers"][m]["rank"] or 999) <= most for q in d["questions"]) for m in methods]
        lines.append(f"| *{word}* | " + " | ".join(f"*{n} of {asked}*" for n in found) + " |")
    times = {m: sorted(q["answers"][m]["ms"] for q in d["questions"]) for m in methods}
    lines.append(
        "| *milliseconds, median (worst)* | "
        + " | ".join(f"*{times[m][asked // 2]:.1f} ({times[m][-1]:.1f})*" for m in methods)
        + " |"
    )
    lines += ["", "What came back, first hits of each; the pages named beforehand are bold:", ""]
    for q in d["questions"]:
        lines += [f"**{_cell(q['question'])}**", ""]
        for m in methods:
            hits = [
                f"{'**' if h['good'] else ''}`{h['file']}`:{h['line']}{'**' if h['good'] else ''}"
                for h in q["answers"][m]["hits"]
            ]
            lines.append(f"- {m}: " + ", ".join(hits))
        lines.append("")
    return "\n".join(lines)


def _interval(e: dict[str, Any], sign: str = "+") -> str:
    if e["mean"] is None:
        return "not measured"
    mean = f"{e['mean']:{sign}.4g}"
    if e["low"] is None or e["low"] == e["high"]:
        return mean
    return f"{mean} [{e['low']:{sign}.4g}, {e['high']:{sign}.4g}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
