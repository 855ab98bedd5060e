"""Source code: Python by its syntax tree, other languages by blank lines and what starts at the margin."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from itertools import accumulate

from gradatim.tasks.documents.decoding import decode
from gradatim.tasks.documents.passages import Block, Passage, pack, paragraphs

# What opens a named thing in most languages with braces, and in shell, Ruby, Lua, Go, Rust.
_DEFINITION = re.compile(
    r"^[ \t]{0,4}(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|"
    r"pub(?:\([a-z]+\))?|unsafe|extern|inline|const|virtual|override|template|typedef|sealed|data|open|local)\s+)*"
    r"(?:class|struct|enum|interface|trait|impl|union|namespace|module|package|function|func|fun|fn|def|sub|"
    r"proc|macro_rules!|type|object)\s+\*?(?:\([^)]*\)\s*)?([A-Za-z_$][\w$:.<>]*)",
    re.M,
)
_C_FUNCTION = re.compile(r"^(?!return|else|typedef)[A-Za-z_][\w\s*&:<>,]*?[\s*&]([A-Za-z_]\w*)\s*\([^;]*$")


def read_python(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a Python file: each function, method and class head with its docstring, titled by its name.

    A file that does not parse is read like any other language.
    """
    text = decode(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from _by_blank_lines(text, name)
        return
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    at = 1
    for title, first, last in _pieces(tree.body, name.removesuffix(".py"), 1):
        if first > at:
            yield from _lines(text, starts, at, first - 1, name)
        yield from _lines(text, starts, first, last, title)
        at = last + 1
    yield from _lines(text, starts, at, len(lines), name)


def _pieces(body: list[ast.stmt], prefix: str, depth: int) -> Iterator[tuple[str, int, int]]:
    """Title, first and last line of each definition, in order and apart from one another."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        title = f"{prefix}.{node.name}"
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.ClassDef) and depth < 8:
            inner = list(_pieces(node.body, title, depth + 1))
            if inner and inner[0][1] > first:
                yield title, first, inner[0][1] - 1
                # What stands between methods belongs to the class.
                for i, (said, begin, end) in enumerate(inner):
                    yield said, begin, end
                    following = inner[i + 1][1] if i + 1 < len(inner) else last + 1
                    if following > end + 1:
                        yield title, end + 1, following - 1
                continue
        yield title, first, last


def _lines(text: str, starts: list[int], first: int, last: int, title: str) -> Iterator[Passage]:
    begin, end = starts[first - 1], min(starts[last], len(text))
    yield from pack(paragraphs(text[begin:end], first, begin), title)


def read_code(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a source file in any language, titled by the definition they stand in or open."""
    yield from _by_blank_lines(decode(data), name)


def _by_blank_lines(text: str, name: str) -> Iterator[Passage]:
    group: list[Block] = []
    title = name
    for block in paragraphs(text):
        opened = _opened(block.text)
        # A definition at the margin starts a passage; its body, indented or closed by a brace, goes along.
        if group and opened:
            yield from pack(group, title)
            group = []
        if opened:
            title = f"{name}: {opened}"
        elif not block.text[0].isspace() and block.text[0] not in "})]":
            if group and title != name:
                yield from pack(group, title)
                group = []
            title = name
        group.append(block)
    yield from pack(group, title)


def _opened(block: str) -> str:
    """The name that a block's first definition at the margin gives, or ""."""
    if match := _DEFINITION.search(block):
        return match[1]
    for line in block.split("\n")[:12]:
        if len(line) < 300 and not line.startswith((" ", "\t")) and (match := _C_FUNCTION.match(line)):
            return match[1]
    return ""
