"""The pages: whole, escaped, deterministic, and every number from the reports."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import synthetic_reports as synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradatim.report import write_report
from gradatim.report.formatting import number, shown

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """Collects what the tests ask of a page, and checks that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts = 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all_text(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "report"
    reports = synthetic.house()
    index = write_report(reports, folder)
    return index, reports


def test_every_claim_has_a_row_with_its_figures(house):
    index, reports = house
    page = Page(index.read_text())
    text = page.all_text()
    verdicts = [v for r in reports for v in r.verdicts]
    assert sum(a.get("class") == "claim" for _, a in page.tags) == len(verdicts)
    for v in verdicts:
        assert v.claim.statement in text
        assert shown(v.estimate).mean in text
        if v.claim.paper is not None:
            assert f"paper {number(v.claim.paper, signed=True)}" in text


def test_counts_are_the_verdicts(house):
    index, reports = house
    text = Page(index.read_text()).all_text()
    words = [v.word for r in reports for v in r.verdicts]
    for word in ("reproduced", "not reproduced", "inconclusive"):
        assert f"{words.count(word)} {word}" in text
    survived = sum(
        v.word == "reproduced" and v.control.word == "survives" for r in reports for v in r.verdicts
    )
    assert f"of which {survived} also" in text


def test_only_reproduced_claims_that_survive_stand(tmp_path):
    r = synthetic.boosted()
    words = [("reproduced", "survives"), ("reproduced", "undecided"), ("inconclusive", "survives")]
    verdicts = [
        replace(v, word=w, control=replace(v.control, word=c))
        for v, (w, c) in zip(r.verdicts[:3], words, strict=True)
    ]
    text = Page(write_report([replace(r, verdicts=verdicts)], tmp_path / "r").read_text()).all_text()
    assert "2 reproduced , of which 1 also survives the plain explanation that could explain it away" in text


def test_a_changed_figure_changes_the_page(house, tmp_path):
    index, reports = house
    v = reports[0].verdicts[0]
    other = replace(v, estimate=replace(v.estimate, mean=0.00877), word="not reproduced")
    changed = replace(reports[0], verdicts=[other, *reports[0].verdicts[1:]])
    text = write_report([changed, *reports[1:]], tmp_path / "r").read_text()
    assert shown(other.estimate).mean in text
    assert shown(other.estimate).mean not in index.read_text()


def test_pages_are_whole_and_links_lead_somewhere(house):
    index, _ = house
    for file in index.parent.glob("*.html"):
        page = Page(file.read_text())
        ids = [a["id"] for _, a in page.tags if a.get("id")]
        assert len(ids) == len(set(ids))
        for tag, a in page.tags:
            if tag == "a":
                path, _, anchor = a["href"].partition("#")
                if path.startswith("https://arxiv.org/abs/"):
                    continue
                target = index.parent / path if path else file
                assert target.is_file()
                if anchor:
                    assert f'id="{anchor}"' in target.read_text()
            for name in ("aria-labelledby", "for"):
                assert set((a.get(name) or "").split()) <= set(ids)


def test_nothing_is_loaded_from_anywhere(house):
    index, _ = house
    for file in index.parent.glob("*.html"):
        for tag, a in Page(file.read_text()).tags:
            assert tag not in ("iframe", "object", "embed", "img")
            assert not a.get("src")
            if tag in ("link", "image"):
                assert a["href"].startswith("data:")
            if tag == "use":
                assert a["href"].startswith("#")
            assert not [name for name in a if name.startswith("on")]


def test_same_reports_same_bytes(house, tmp_path):
    index, _ = house
    again = write_report(synthetic.house(), tmp_path / "again")
    files = sorted(p.relative_to(index.parent) for p in index.parent.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again.parent) for p in again.parent.rglob("*") if p.is_file())
    for name in files:
        assert (index.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_json_beside_each_page(house):
    index, reports = house
    for r in reports:
        data = json.loads((index.parent / "data" / f"{r.study.slug}.json").read_text())
        assert data == json.loads(json.dumps(r.to_json(), default=str))


def test_page_of_a_paper_holds_what_it_promises(house):
    index, _ = house
    text = Page((index.parent / "schedule-refinement.html").read_text()).all_text()
    for part in (
        "The gradient norms of one run", "Defazio, Cutkosky, Mehta, Mishchenko", "BCa bootstrap", "Holm",
        "linear below cosine on most of ten problems", "a further gain on average", "FloatingPointError",
        "transformer/refined, seed 12", "3 trials of this profile have not been measured",
        "gradatim run schedule-refinement --profile quick", "refine_schedule", "@misc{defazio2023when",
        "Refinement helps least", "a processor", "steps 1500", "Any warm-up with a fall at the end",
        "Table: The refined schedule beside its gradient norms", "Table: logistic: loss",
    ):  # fmt: skip
        assert part in text


def test_a_comparison_has_a_page_of_the_same_make(house):
    index, _ = house
    text = Page((index.parent / "compare-retrieval.html").read_text()).all_text()
    assert "What is compared" in text
    assert "lse-pair beats infonce" in text
    assert "Cite the paper" not in text


def test_hostile_names_stay_text(tmp_path):
    index = write_report([synthetic.hostile(), *synthetic.house()], tmp_path / "r", title=synthetic.HOSTILE)
    for file in tmp_path.glob("r/*.html"):
        page = Page(file.read_text())
        assert page.scripts == 1
        assert not [a for _, a in page.tags if "49" in str(a.get("aria-label"))]
    assert "alert('x')" in Page(index.read_text()).all_text()
    assert all(
        re.fullmatch(r"[a-z0-9-]+\.(html|json)", p.name)
        for p in tmp_path.glob("r/**/*.*")
        if p.name[0] != "."
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=40))
def test_any_name_stays_text(tmp_path, text):
    write_report([synthetic.hostile(text)], tmp_path / "r")
    for file in tmp_path.glob("r/*.html"):
        page = Page(file.read_text())
        assert page.scripts == 1
        assert all(KNOWN.fullmatch(tag) for tag, _ in page.tags)


KNOWN = re.compile(
    "html|head|meta|link|title|style|script|body|header|main|footer|nav|section|article|div|span|p|b|strong|em|"
    "cite|time|code|pre|button|h[1-6]|dl|dt|dd|ul|ol|li|hr|br|blockquote|table|caption|thead|tbody|tr|th|td|"
    "form|label|input|select|option|details|summary|figure|figcaption|a|"
    "svg|defs|g|path|circle|rect|line|text|tspan|use|image|clippath|desc"
)


@pytest.mark.parametrize("keywords", [{}, {"failed": True}, {"seeds": 1}, {"seeds": 2}])
def test_reports_with_little_in_them(tmp_path, keywords):
    index = write_report([synthetic.empty(**keywords)], tmp_path / "r")
    text = Page(index.read_text()).all_text()
    assert "a beats b" in text
    page = Page((index.parent / "empty.html").read_text()).all_text()
    assert "None" not in page
    assert "nan" not in page.lower().split()
    if keywords.get("failed"):
        assert "ValueError: no" in page


def test_no_reports_at_all(tmp_path):
    study = synthetic.boosted().study
    text = Page(write_report([], tmp_path / "r", others=[study]).read_text()).all_text()
    assert "Nothing is measured yet" in text
    assert "gradatim run boosted-network" in text


def test_one_study_at_two_profiles_has_two_pages(tmp_path):
    quick = synthetic.boosted()
    write_report(
        [quick, replace(quick, profile="standard"), replace(quick, profile="standard")], tmp_path / "r"
    )
    assert sorted(p.name for p in tmp_path.glob("r/*.html")) == [
        "boosted-network-2.html", "boosted-network-standard.html", "boosted-network.html", "index.html",
    ]  # fmt: skip


def test_two_hundred_claims_stay_small(tmp_path):
    r = synthetic.boosted()
    many = replace(r, verdicts=list(r.verdicts) * 50, results=synthetic.empty().results)
    assert write_report([many], tmp_path / "r").stat().st_size < 1_000_000
