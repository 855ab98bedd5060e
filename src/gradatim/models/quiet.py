"""Opening and saving models without the libraries' own progress bars and advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger


@contextmanager
def quietly(*, advice: bool = False) -> Iterator[None]:
    """No progress bars of transformers inside, which would write into ours; afterwards all is as before.

    Without `advice` its warnings, and those of sentence-transformers, are not shown either: that a head is
    new, or that a tokenizer pads on the other side, is what a caller here wants and need not be told.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    library = getLogger("sentence_transformers")
    before = library.level
    logging.disable_progress_bar()
    if not advice:
        logging.set_verbosity_error()
        library.setLevel(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        library.setLevel(before)
        if bars:
            logging.enable_progress_bar()
