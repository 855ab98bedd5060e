"""Real English that is on every installation: the documentation of the installed packages.

`docstring_retrieval` turns the docstrings of numpy, scipy and scikit-learn into a retrieval task: the first
paragraph of an object is a query, the rest of its docstring its own ("gold") passage, and the objects under
its "See Also" are further relevant passages. `docstring_texts` gives whole docstrings, with torch and
Python's own help topics, as text for language models. Nothing is shipped and nothing is downloaded; the
corpus changes with the installed versions, hence the SHA-256 that goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import pkgutil
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gradatim.tasks.retrieval import RetrievalTask

RETRIEVAL_PACKAGES = ("numpy", "scipy", "sklearn")
TEXT_PACKAGES = ("numpy", "scipy", "sklearn", "torch")

GOLD, LINK = 3, 1
"""Graded relevance of an object's own passage and of the objects its docstring refers to."""

_SHORTEST_DOC = 200
_SHORTEST_PASSAGE = 120
_FEWEST_QUERY_WORDS = 3
_SAME_START = 300

# Tests, and other people's code that a package carries along.
_NOT_WALKED = ("tests", "conftest", "externals")


@dataclass(frozen=True)
class DocumentedObject:
    """A public function or class, its dotted name and its cleaned docstring."""

    name: str
    doc: str

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class TextCorpus:
    """Texts by name, and their SHA-256."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    sha256: str


@lru_cache(maxsize=4)
def documented_objects(packages: tuple[str, ...] = RETRIEVAL_PACKAGES) -> tuple[DocumentedObject, ...]:
    """Every public routine and class of the packages with a docstring of at least 200 characters.

    Submodules are walked in order of name (private ones and tests skipped, those that do not import
    ignored), attributes in order of name; of docstrings with equal first 300 characters the first stays.
    Raises ModuleNotFoundError when a package itself is missing.
    """
    found: list[DocumentedObject] = []
    starts: set[str] = set()
    for module in _public_modules(packages):
        for attribute in sorted(dir(module)):
            if attribute.startswith("_"):
                continue
            doc = _docstring(module, attribute)
            if doc is None or doc[:_SAME_START] in starts:
                continue
            starts.add(doc[:_SAME_START])
            found.append(DocumentedObject(f"{module.__name__}.{attribute}", doc))
    return tuple(found)


@lru_cache(maxsize=4)
def docstring_retrieval(packages: tuple[str, ...] = RETRIEVAL_PACKAGES) -> RetrievalTask:
    """The docstring retrieval task: graded relevance 3 for an object's own passage, 1 for its links.

    An object is kept when its passage has more than 120 characters and its query at least three words.
    Links are author-made and incomplete: related objects that nobody linked count as irrelevant.
    """
    kept: dict[str, tuple[str, str, list[str]]] = {}
    for item in documented_objects(packages):
        text, links = split_see_also(item.doc)
        query, passage = split_query(text, item.short_name)
        if len(passage) > _SHORTEST_PASSAGE and len(query.split()) >= _FEWEST_QUERY_WORDS:
            kept[item.name] = (query, passage, links)
    by_short_name: dict[str, list[str]] = {}
    for name in kept:
        by_short_name.setdefault(name.rpartition(".")[2], []).append(name)
    qrels: dict[str, dict[str, int]] = {}
    for name, (_, _, links) in kept.items():
        linked = {target: LINK for link in links for target in by_short_name.get(link, ()) if target != name}
        qrels[name] = {name: GOLD, **linked}
    return RetrievalTask(
        name="docstrings",
        queries={name: query for name, (query, _, _) in kept.items()},
        corpus={name: passage for name, (_, passage, _) in kept.items()},
        qrels=qrels,
    )


def linked_split(
    task: RetrievalTask, train_share: float = 0.7, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Train and test query ids among those with at least one link besides the gold passage, shuffled."""
    linked = np.array([query for query, grades in task.qrels.items() if len(grades) > 1], dtype=object)
    np.random.default_rng(seed).shuffle(linked)
    cut = int(train_share * len(linked))
    return tuple(linked[:cut]), tuple(linked[cut:])


def docstring_texts(packages: tuple[str, ...] = TEXT_PACKAGES, topics: bool = True) -> TextCorpus:
    """Whole docstrings of the packages and, with `topics`, Python's own help texts (pydoc_data.topics)."""
    named = [(item.name, item.doc) for item in documented_objects(packages)]
    if topics:
        from pydoc_data.topics import topics as help_texts

        named += [(f"python.{name}", text.strip()) for name, text in sorted(help_texts.items())]
    return TextCorpus(
        names=tuple(name for name, _ in named),
        texts=tuple(text for _, text in named),
        sha256=sha256_of(part for pair in named for part in pair),
    )


@dataclass(frozen=True)
class LabelledDocuments:
    """Documents as lists of lower-case words, and the number of each one's label in `names`."""

    documents: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    names: tuple[str, ...]


def docstring_topics(
    packages: tuple[str, ...] = TEXT_PACKAGES,
    least_documents: int = 60,
    fewest_words: int = 20,
    most_words: int = 200,
) -> LabelledDocuments:
    """Docstrings with the package and module they come from (`scipy.signal`) as topic.

    Words are runs of letters in lower case. Docstrings of fewer than `fewest_words` words are left out,
    longer ones cut at `most_words`, and topics with fewer than `least_documents` dropped. Raises ValueError
    when no topic is left.
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    for item in documented_objects(packages):
        words = tuple(re.findall(r"[a-z]+", item.doc.lower())[:most_words])
        if len(words) >= fewest_words:
            found.setdefault(".".join(item.name.split(".")[:2]), []).append(words)
    names = sorted(name for name, documents in found.items() if len(documents) >= least_documents)
    if not names:
        raise ValueError(f"no topic of {', '.join(packages)} has {least_documents} documents")
    return LabelledDocuments(
        documents=tuple(document for name in names for document in found[name]),
        labels=np.repeat(np.arange(len(names)), [len(found[name]) for name in names]),
        names=tuple(names),
    )


def sha256_of(parts: Iterable[str]) -> str:
    """SHA-256 of a sequence of strings, each closed by a zero byte so that cuts cannot move."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def split_see_also(doc: str) -> tuple[str, list[str]]:
    """A numpydoc docstring without its "See Also" section, and the short names that the section lists.

    The section runs from its underline to a blank line followed by an unindented line. Names stand before
    a colon, alone on a line, or in a comma list; of a dotted name the last part counts.
    """
    lines = doc.split("\n")
    start = next(
        (
            i
            for i in range(len(lines) - 1)
            if lines[i].strip().lower() == "see also" and re.fullmatch(r"\s*-{3,}\s*", lines[i + 1])
        ),
        None,
    )
    if start is None:
        return doc, []
    end = len(lines)
    for i in range(start + 2, len(lines) - 1):
        following = lines[i + 1]
        if not lines[i].strip() and following.strip() and not following[0].isspace():
            end = i
            break
    links: list[str] = []
    for line in lines[start + 2 : end]:
        if line[:1].isspace() or not line.strip():
            continue
        names = re.sub(r":\w+:(?=`)|[`~]", "", line).partition(":")[0]
        for name in names.split(","):
            cleaned = name.strip()
            if re.fullmatch(r"[A-Za-z_][\w.]*", cleaned):
                links.append(cleaned.rpartition(".")[2])
    return "\n".join(lines[:start] + lines[end:]), list(dict.fromkeys(links))


def split_query(text: str, short_name: str) -> tuple[str, str]:
    """The first paragraph that is no call signature as query, and what follows it as passage.

    The passage loses its rule lines, its doctest lines and the object's own name, which would give the
    answer away; runs of white space become one blank.
    """
    paragraphs = re.split(r"\n\s*\n", text.strip())
    # Universal functions open with two signatures, one generated and one written.
    first = next((i for i, p in enumerate(paragraphs) if not re.match(r"[\w.]+\(", p)), 0)
    query = " ".join(paragraphs[first].split())
    body = "\n".join(
        line
        for paragraph in paragraphs[first + 1 :]
        for line in paragraph.split("\n")
        if not re.fullmatch(r"\s*[-=~^*]{3,}\s*", line) and not re.match(r"\s*(>>>|\.\.\.)", line)
    )
    body = re.sub(rf"\b{re.escape(short_name)}\b", " ", body)
    return query, " ".join(body.split())


def _public_modules(packages: Iterable[str]) -> Iterator[ModuleType]:
    for package in packages:
        root = importlib.import_module(package)
        yield root
        yield from _walk(root)


def _walk(parent: ModuleType) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(getattr(parent, "__path__", ())), key=lambda i: i.name):
        name = f"{parent.__name__}.{info.name}"
        if info.name.startswith("_") or info.name in _NOT_WALKED:
            continue
        module = _import_quietly(name)
        if module is not None:
            yield module
            if info.ispkg:
                yield from _walk(module)


def _import_quietly(name: str) -> ModuleType | None:
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit):  # a module that does not import here has no docstrings to read
            return None


def _docstring(module: ModuleType, attribute: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value: Any = getattr(module, attribute)
            if not (inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, np.ufunc)):
                return None
            doc = value.__doc__
        except Exception:  # lazy attributes may raise anything
            return None
    if not isinstance(doc, str) or len(doc) < _SHORTEST_DOC:
        return None
    return _stable(inspect.cleandoc(doc))


def _stable(doc: str) -> str:
    """The docstring without what changes from process to process.

    Some are written at import time: scipy adds a table of array libraries (to a numpy function too, once
    scipy is imported), prints a set in the order of the salted hash, and shows freshly drawn samples.
    """
    doc = re.sub(
        r"\n*\*\*Array API Standard Support\*\*.*?See :ref:`dev-arrayapi` for more information\.",
        "",
        doc,
        flags=re.S,
    )
    doc = re.sub(r"\n[^\n]*# may vary[^\n]*", "", doc)
    return re.sub(r"\{('\w+'(?:, '\w+')+)\}", lambda m: "{" + ", ".join(sorted(m[1].split(", "))) + "}", doc)
