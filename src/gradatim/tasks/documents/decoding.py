"""Bytes into text: byte-order marks, declared and guessed encodings, and what is no text at all."""

from __future__ import annotations

import codecs
import re

from gradatim.tasks.documents.passages import UnreadableError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Everything but tab and line end that a terminal or a browser might act on, and halves of pairs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def is_binary(data: bytes) -> bool:
    """Whether these bytes are no text: a zero byte, or more than a tenth control characters, at the start."""
    head = data[:8192]
    if head.startswith(tuple(mark for mark, _ in _MARKS)):
        return False
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b\b" for byte in head)
    return b"\0" in head or controls > len(head) / 10


def decode(data: bytes) -> str:
    """Text of a file: by its byte-order mark, else UTF-8, else what its bytes look like.

    Line ends become one newline, control characters blanks; bytes that fit no encoding become U+FFFD.
    Raises UnreadableError for binary data.
    """
    if is_binary(data):
        raise UnreadableError("binary file")
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return clean(data.decode(encoding, "replace"))
    try:
        return clean(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        if _mostly_utf8(data, error):
            return clean(data.decode("utf-8", "replace"))
        return clean(_guessed(data))


def clean(text: str) -> str:
    """One kind of line end, and nothing that a terminal would act on."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    return _CONTROL.sub(" ", text.removeprefix("\ufeff"))


def _mostly_utf8(data: bytes, error: UnicodeDecodeError) -> bool:
    """Damaged or cut UTF-8 rather than another encoding: most of its non-ASCII bytes still decode."""
    high = sum(byte >= 128 for byte in data)
    return data.decode("utf-8", "replace").count("\ufffd") <= high / 10


def _guessed(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:200_000]).best()
    return data.decode(best.encoding if best is not None else "cp1252", "replace")
