"""The process that opens other people's files: one request a line in, batches of passages out.

A file can crash, hang or fill the memory of whoever parses it. It is parsed here, by a process that may be
lost; `reading` watches over it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, TextIO

from gradatim.tasks.documents.decoding import clean
from gradatim.tasks.documents.formats import reader_of
from gradatim.tasks.documents.passages import Passage, UnreadableError

BATCH = 256


def main() -> None:
    """Answer requests until standard input ends."""
    # Whatever a parser prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    _limit_memory(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for line in sys.stdin:
        _answer(json.loads(line), answers)


def _answer(request: dict[str, Any], answers: TextIO) -> None:
    try:
        for message in _messages(request):
            _say(answers, message)
    except UnreadableError as error:
        _say(answers, {"error": str(error)})
    except MemoryError:
        _say(answers, {"error": "takes too much memory"})
    except OSError as error:
        _say(answers, {"error": f"cannot be opened ({error.strerror})"})
    except RecursionError:
        _say(answers, {"error": "nested too deeply"})
    except Exception as error:  # a parser's own fault: the file is skipped, the others go on
        _say(answers, {"error": clean(f"{type(error).__name__}: {error}")[:200].replace("\n", " ")})


def _messages(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    most = int(request["most_bytes"])
    with open(request["file"], "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise UnreadableError("too large")
    batch: list[Passage] = []
    name = PurePosixPath(request["path"]).name
    passages = reader_of(request["format"])(data, clean(name.encode("utf-8", "replace").decode()))
    for total, passage in enumerate(passages, 1):
        if total > request["most_passages"]:
            raise UnreadableError(f"more than {request['most_passages']:,} passages")
        batch.append(passage)
        if len(batch) == BATCH:
            yield {"passages": [vars(p) for p in batch]}
            batch = []
    yield {"passages": [vars(p) for p in batch]}
    yield {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _limit_memory(megabytes: int) -> None:
    """Let this process grow by so much and no more, where the system can say so."""
    if megabytes <= 0:
        return
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, hard))


if __name__ == "__main__":
    main()
