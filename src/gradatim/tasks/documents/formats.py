"""Which reader reads which file, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from gradatim.tasks.documents.passages import Passage

Reader = Callable[[bytes, str], Iterator[Passage]]

_CODE = (
    ".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx", ".cu", ".cuh", ".m", ".mm", ".cs",
    ".java", ".kt", ".kts", ".scala", ".groovy", ".go", ".rs", ".swift", ".js", ".jsx", ".mjs", ".cjs",
    ".ts", ".tsx", ".vue", ".svelte", ".php", ".rb", ".pl", ".pm", ".lua", ".r", ".jl", ".hs", ".ml",
    ".mli", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".scm", ".f", ".f90", ".f95", ".for", ".pas",
    ".d", ".zig", ".nim", ".dart", ".sh", ".bash", ".zsh", ".fish", ".ps1", ".sql", ".proto", ".cmake",
    ".pyx", ".pxd", ".css", ".scss", ".less", ".v", ".sv", ".vhd", ".asm", ".s", ".glsl", ".wgsl",
)  # fmt: skip

_BY_SUFFIX = {
    "markdown": (".md", ".markdown", ".mdown", ".mkd"),
    "html": (".html", ".htm", ".xhtml"),
    "pdf": (".pdf",),
    "jsonl": (".jsonl", ".ndjson"),
    "python": (".py", ".pyi", ".pyw"),
    "code": _CODE,
    "text": (".txt", ".text", ".rst", ".rest", ".adoc", ".org", ".tex", ".log", ".csv", ".tsv", ".srt"),
}

# Data that would drown the words of everything else, though it decodes as text.
NO_READER = frozenset({
    ".json", ".geojson", ".ipynb", ".xml", ".svg", ".map", ".lock", ".pem", ".crt", ".key", ".ps",
    ".eps", ".rtf", ".sum", ".patch", ".diff", ".po", ".mo",
})  # fmt: skip
NO_READER_NAMES = frozenset({"package-lock.json", "yarn.lock", "poetry.lock"})

FORMAT_OF = {suffix: name for name, suffixes in _BY_SUFFIX.items() for suffix in suffixes}
FORMATS = tuple(_BY_SUFFIX)


def format_of(path: str) -> str | None:
    """The format that a file's name says; "text" for names that say nothing, None where no reader fits."""
    name = PurePosixPath(path).name.lower()
    suffix = PurePosixPath(name).suffix
    if suffix in NO_READER or name in NO_READER_NAMES:
        return None
    return FORMAT_OF.get(suffix, "text")


def is_named(path: str) -> bool:
    """Whether the name itself says that a reader of ours fits, so that nobody need look inside."""
    return PurePosixPath(path).suffix.lower() in FORMAT_OF


def reader_of(format: str) -> Reader:
    """The reader of a format. Raises ValueError for a name that is none."""
    if format == "markdown":
        from gradatim.tasks.documents.markdown import read_markdown

        return read_markdown
    if format == "html":
        from gradatim.tasks.documents.html import read_html

        return read_html
    if format == "pdf":
        from gradatim.tasks.documents.pdf import read_pdf

        return read_pdf
    if format == "jsonl":
        from gradatim.tasks.documents.json_lines import read_json_lines

        return read_json_lines
    if format in ("python", "code"):
        from gradatim.tasks.documents.source_code import read_code, read_python

        return read_python if format == "python" else read_code
    if format == "text":
        from gradatim.tasks.documents.plain_text import read_text

        return read_text
    raise ValueError(f"no format {format!r}; there are: {', '.join(FORMATS)}")
