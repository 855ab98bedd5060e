"""Each format's reader: passages of the right words, under the right title, at the right place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pdf import encrypted, pdf

from gradatim.tasks.documents.decoding import decode, is_binary
from gradatim.tasks.documents.formats import FORMATS, format_of, reader_of
from gradatim.tasks.documents.passages import (
    MOST_CHARS,
    MOST_WORDS,
    Block,
    UnreadableError,
    pack,
    paragraphs,
)


def read(format_, data, name="file"):
    return list(reader_of(format_)(data if isinstance(data, bytes) else data.encode(), name))


def said(passages):
    return [(p.title, " ".join(p.text.split())) for p in passages]


def words(n, of="word"):
    return " ".join(f"{of}{i}" for i in range(n))


# Packing


def test_small_paragraphs_are_joined_and_long_ones_cut():
    blocks = list(paragraphs("\n\n".join([words(60, "a"), words(60, "b"), words(60, "c"), words(400, "d")])))
    lengths = [len(p.text.split()) for p in pack(blocks)]
    assert lengths[:2] == [120, 60]
    assert sum(lengths) == 580
    assert max(lengths) <= MOST_WORDS


def test_sentences_are_kept_whole_where_a_paragraph_is_cut():
    text = " ".join(f"This is sentence number {i} of a long paragraph." for i in range(60))
    cut = pack(paragraphs(text))
    assert len(cut) > 2
    assert all(p.text.endswith(".") for p in cut)
    assert " ".join(p.text for p in cut) == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab .\n\té漢"), max_size=4000))
def test_nothing_is_lost_nothing_is_too_long_and_places_are_exact(text):
    passages = pack(paragraphs(text))
    assert "".join("".join(p.text for p in passages).split()) == "".join(text.split())
    lines = text.split("\n")
    for p in passages:
        assert len(p.text) <= MOST_CHARS + 2
        assert "".join(p.text.split()) == "".join(text[p.start : p.end].split())
        covered = "".join("".join(lines[p.line - 1 : p.end_line]).split())
        assert "".join(p.text.split()) in covered


def test_headings_title_what_stands_below_and_are_not_said_twice():
    blocks = [
        Block("Paris", heading=1), Block(words(60)), Block("Rome", heading=2), Block("short"),
        Block("Oslo", heading=2), Block(words(55)),
    ]  # fmt: skip
    found = pack(blocks, "Cities")
    assert [p.title for p in found] == ["Cities › Paris", "Cities › Rome"]
    assert found[0].text == words(60)
    # A short section goes on into the next, whose heading stays readable.
    assert found[1].text.split("\n\n")[:2] == ["short", "Oslo"]
    assert pack([Block("Only a heading", heading=1)], "t") == []


def test_a_heading_left_at_the_end_of_a_full_passage_belongs_to_the_next():
    found = pack([Block(words(40)), Block("Next", heading=1), Block(words(140, "x"))], "t")
    assert [p.title for p in found] == ["t", "t › Next"]
    assert found[0].text == words(40)


# Decoding


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-32", "latin-1", "cp1252"]
)
def test_encodings_are_found(encoding):
    text = "Größe und Maß: ein Café in Zürich, größer als früher. " * 8
    data = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    assert decode(data) == text


def test_line_ends_and_control_characters():
    assert decode(b"a\r\nb\rc\n") == "a\nb\nc\n"
    assert decode(b"red \x1b[31m alarm\x07") == "red  [31m alarm "
    assert decode("a\u202eb\u2028c".encode()) == "a b c"


def test_damaged_utf8_keeps_the_rest():
    text = ("déjà vu " * 50).encode()
    assert decode(text[:100] + b"\xff" + text[100:]).count("\ufffd") == 1
    assert decode(text[:-1][: len(text) - 2] + "é".encode()[:1]).count("\ufffd") == 1


@pytest.mark.parametrize("data", [b"\x7fELF\0\0", bytes(range(32)) * 20, b"text" + b"\0" * 10])
def test_binary_is_no_text(data):
    assert is_binary(data)
    with pytest.raises(UnreadableError, match="binary"):
        decode(data)


# Text


def test_text_is_titled_by_underlines_and_knows_its_lines():
    text = f"Guide\n=====\n\nIntro line.\n\nUsage\n-----\n{words(60)}\n\n+----+\n| a  |\n+----+\n"
    found = read("text", text, "guide.txt")
    assert [(p.title, p.line) for p in found] == [("Guide", 4)]
    assert "Usage" in found[0].text
    text = f"Guide\n=====\n\n{words(60)}\n\nUsage\n-----\n{words(60, 'x')}\n"
    assert [(p.title, p.line, p.end_line) for p in read("text", text)] == [
        ("Guide", 4, 4), ("Guide › Usage", 8, 8),
    ]  # fmt: skip
    assert read("text", "just words", "notes.txt")[0].title == "notes.txt"


def test_tables_and_rules_are_no_headings():
    for text in ("a b\n------------------------------\n1 2", "----\nx\n", "long line of text here\n---\n"):
        assert [p.title for p in read("text", text, "name")] == ["name"]


def test_hard_files():
    assert read("text", "") == []
    assert read("text", " \n\t\n") == []
    assert said(read("text", "\ufeffhello")) == [("file", "hello")]
    huge = read("text", "x" * 100_000)
    assert sum(len(p.text) for p in huge) == 100_000
    assert max(len(p.text) for p in huge) <= MOST_CHARS
    line = read("text", words(5000))
    assert sum(len(p.text.split()) for p in line) == 5000
    assert {p.line for p in line} == {1}
    japanese = read("text", "検索" * 3000)
    assert "".join(p.text for p in japanese) == "検索" * 3000


# Markdown


def test_markdown_loses_its_markup_and_keeps_its_headings():
    text = (
        "---\ntitle: 'The Manual'\n---\n\n# Start\n\nSome *bold* text with `code` and a [link](http://x.y/z)."
        "\n\n```python\n# no heading\n\nx = 1\n```\n\n| a | b |\n|---|---|\n| one | two |\n\n<!-- secret -->"
        "\n\n- item\n"
    )
    (p,) = read("markdown", text)
    assert p.title == "The Manual › Start"
    assert "Some bold text with code and a link." in p.text
    assert "# no heading\n\nx = 1" in p.text
    assert "one | two" in p.text
    assert "secret" not in p.text
    assert "http" not in p.text
    assert (p.line, text.split("\n")[p.line - 1][:4]) == (7, "Some")
    assert text[p.start : p.end].startswith("Some *bold*")
    assert p.text.endswith("item")


def test_markdown_sections():
    text = f"# A\n\n{words(60)}\n\n## B\n\n{words(60)}\n\nC\n---\n\n{words(60)}\n"
    assert [p.title for p in read("markdown", text)] == ["A", "A › B", "A › C"]


# HTML


def test_html_gives_what_a_reader_sees():
    page = (
        "<!doctype html><html><head><title>My page</title><style>.x{}</style></head><body><nav>menu</nav>"
        "<script>alert('no')</script><h1>Top</h1><p>One <b>bold</b> word.<p>Unclosed<div>Nested <div>deeper"
        "</div></div><pre>a\n  b</pre><template>hidden</template><noscript>no</noscript><!-- no -->"
        "<p hidden>unseen</p><ul><li>first<li>second</ul><textarea>typed</textarea></body></html>"
    )
    (p,) = read("html", page)
    assert p.title == "My page › Top"
    assert p.text.split("\n\n") == [
        "One bold word.", "Unclosed", "Nested", "deeper", "a\n  b", "first", "second",
    ]  # fmt: skip


def test_html_titles_lines_and_encodings():
    page = f"<h1>One</h1>\n<p>{words(60)}</p>\n<h2>Two</h2>\n<p>{words(60, 'z')}</p>"
    assert [(p.title, p.line) for p in read("html", page)] == [("One", 2), ("One › Two", 4)]
    latin = "<meta charset=iso-8859-1><p>Größe</p>".encode("latin-1")
    assert read("html", latin)[0].text == "Größe"
    assert read("html", "plain words, no tags", "a.html")[0].title == "a.html"


def test_html_fetches_nothing_and_expands_nothing():
    page = (
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd"><!ENTITY b "&a;&a;">]>'
        '<html><body><img src="http://127.0.0.1:9/x.png"><p>text &a; &b; &amp; more</p></body></html>'
    )
    text = " ".join(p.text for p in read("html", page))
    assert "root:" not in text
    assert "& more" in text


def test_html_nested_a_hundred_thousand_deep():
    deep = "<div>" * 20_000 + "bottom" + "</div>" * 20_000
    with contextlib.suppress(RecursionError):  # the worker says so; see test_reading
        assert read("html", deep)[0].text == "bottom"


# PDF


def test_pdf_pages():
    data = pdf("First page about birds", "Second page\nabout bees", title="Nature")
    found = read("pdf", data)
    assert [(p.page, p.title) for p in found] == [(1, "Nature"), (2, "Nature")]
    assert said(found)[0][1] == "First page about birds"
    assert said(found)[1][1] == "Second page about bees"
    assert read("pdf", pdf("no title"), "a.pdf")[0].title == "a.pdf"


def test_pdf_words_cut_at_a_line_end_are_mended():
    assert "retrieval" in read("pdf", pdf("re-\ntrieval"))[0].text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no pdf at all", "broken"),
        (pdf("text")[:200], "broken|without text"),
        (encrypted(pdf("text")), "encrypted"),
        (pdf(""), "without text"),
        (b"", "broken"),
    ],
    ids=["text", "cut", "encrypted", "empty", "nothing"],
)
def test_pdf_that_cannot_be_read_says_why(data, reason):
    with pytest.raises(UnreadableError, match=reason):
        read("pdf", data)


# Source code


PYTHON = '''"""A module."""
import os

LIMIT = 3


@decorated
def area(radius):
    """The area of a circle."""
    return 3 * radius**2


class Shape:
    """A shape."""

    sides = 0

    def name(self):
        """Its name."""
        return "shape"

    colour = "red"

    class Inner:
        def deep(self):
            return 1


def last(): return 2
print(area(1))
'''


def test_python_is_cut_at_its_definitions():
    found = read("python", PYTHON, "geometry.py")
    titles = [p.title for p in found]
    assert titles == [
        "geometry.py", "geometry.area", "geometry.Shape", "geometry.Shape.name", "geometry.Shape",
        "geometry.Shape.Inner", "geometry.Shape.Inner.deep", "geometry.last", "geometry.py",
    ]  # fmt: skip
    area = found[1]
    assert area.text.startswith("@decorated\ndef area")
    assert (area.line, area.end_line) == (7, 10)
    for p in found:
        assert PYTHON[p.start : p.end].strip() == p.text.strip()
    # Nothing is lost, nothing stands twice.
    assert "".join("".join(p.text for p in found).split()) == "".join(PYTHON.split())


@pytest.mark.parametrize("text", ["def broken(:\n    pass\n", "(" * 5000, "x = 1\n" * 3 + "\f\n"])
def test_python_that_does_not_parse_is_still_read(text):
    found = read("python", text, "a.py")
    assert "".join("".join(p.text for p in found).split()) == "".join(text.split())


def test_other_languages_are_titled_by_their_definitions():
    rust = (
        "use std::io;\n\npub fn main() {\n  let x = 1;\n\n  println!();\n}\n\nstruct Point {\n  x: i32,\n}\n"
    )
    assert said(read("code", rust, "m.rs")) == [
        ("m.rs", "use std::io;"),
        ("m.rs: main", "pub fn main() { let x = 1; println!(); }"),
        ("m.rs: Point", "struct Point { x: i32, }"),
    ]
    c = "#include <a.h>\n\nstatic int add(int a, int b)\n{\n  return a + b;\n}\n"
    assert [p.title for p in read("code", c, "m.c")] == ["m.c", "m.c: add"]


# JSON Lines


def test_json_lines_as_in_beir():
    rows = [
        {"_id": "d1", "title": "One", "text": "first"},
        {"_id": "d2", "title": "", "text": "second"},
        {"id": 7, "contents": words(300)},
    ]
    lines = [json.dumps(r) for r in rows]
    data = "\n".join(
        [lines[0], "no json", lines[1], "[1]", '{"text": 3}', lines[2], '{"text": ""}', "{" * 5000]
    )
    found = read("jsonl", data, "corpus.jsonl")
    assert said(found)[:2] == [("One", "first"), ("d2", "second")]
    assert [p.line for p in found] == [1, 3, 6, 6]
    assert {p.title for p in found[2:]} == {"7"}
    with pytest.raises(UnreadableError, match="no line"):
        read("jsonl", '{"words": "x"}\n')


def test_json_escapes_do_not_bring_control_characters_in():
    assert read("jsonl", r'{"text": "a \u001b[31m b \ud800 c"}')[0].text.isprintable()


# All


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.MD", "markdown"), ("x.htm", "html"), ("x.pdf", "pdf"), ("Makefile", "text"), ("a.py", "python"),
        ("a.rs", "code"), ("c.jsonl", "jsonl"), ("a.json", None), ("yarn.lock", None), ("x.unknown", "text"),
    ],
)  # fmt: skip
def test_format_by_name(path, expected):
    assert format_of(path) == expected


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=600), st.sampled_from(FORMATS))
def test_any_bytes_are_read_or_refused(data, format_):
    with contextlib.suppress(UnreadableError):
        for passage in read(format_, data):
            assert passage.text.strip()
            assert "\x1b" not in passage.text + passage.title


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3000))
def test_damaged_pdfs_are_read_or_refused(at, byte, end):
    data = bytearray(pdf("Some words on a page", "and on another"))
    data[at % len(data)] = byte
    with contextlib.suppress(UnreadableError):
        read("pdf", bytes(data[: end if end > 300 else len(data)]))
