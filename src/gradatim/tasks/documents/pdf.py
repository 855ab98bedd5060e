"""PDF through pypdf, page by page."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator

from gradatim.tasks.documents.decoding import clean
from gradatim.tasks.documents.passages import Passage, UnreadableError, pack, paragraphs

MOST_PAGES = 5000


def read_pdf(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a PDF's pages, a page's passages as soon as it is read.

    Raises UnreadableError for a file that is encrypted, broken, longer than 5000 pages or without text.
    """
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    found = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader = PdfReader(io.BytesIO(data), strict=False)
            if reader.is_encrypted and not reader.decrypt(""):
                raise UnreadableError("encrypted PDF")
            count = len(reader.pages)
            if count > MOST_PAGES:
                raise UnreadableError(f"PDF of {count} pages, more than {MOST_PAGES}")
            title = _title(reader) or name
            for number in range(count):
                text = _mended(reader.pages[number].extract_text())
                for passage in pack(paragraphs(text, page=number + 1), title):
                    found = True
                    # Lines of extracted text are no lines of the file.
                    yield Passage(passage.title, passage.text, page=number + 1)
        except UnreadableError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UnreadableError(f"broken PDF ({reason})") from error
    if not found:
        raise UnreadableError("PDF without text (scanned pages?)")


def _title(reader: object) -> str:
    try:
        title = reader.metadata.title  # type: ignore[attr-defined]
    except Exception:
        return ""
    return clean(title).strip() if isinstance(title, str) else ""


def _mended(text: str) -> str:
    """A page's text with words that were cut at the end of a line made whole."""
    return re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", clean(text))
