"""Making one shard of a generation: the unchanged comes from the old one, the rest is read and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gradatim.inference.search.dense import encode_passages
from gradatim.inference.search.file_table import FileRecord, read_file_table, write_files
from gradatim.inference.search.files import Manifest, write_array
from gradatim.inference.search.journal import Journal
from gradatim.inference.search.passages import StoredPassage, write_passages
from gradatim.inference.search.postings import build_postings, merge_postings
from gradatim.inference.search.postings_file import write_postings
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import Shard, shard_name
from gradatim.inference.search.words import words_of

if TYPE_CHECKING:
    from gradatim.tasks.documents import FoundFile

READERS = "1"
"""Changed with the readers, so that files are read again by the new ones."""

# A file that was changed in the two seconds before it was last read may have changed again unseen.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class ShardTask:
    """All that a worker, here or elsewhere, needs to make a shard. `old` is None for a first index."""

    folder: Path
    index: Path
    generation: str
    number: int
    files: tuple[FoundFile, ...]
    settings: IndexSettings
    old: Manifest | None
    old_started_ns: int = 0
    encoder_unchanged: bool = False


@dataclass(frozen=True)
class ShardReport:
    """What came of it: counts, and files that failed with their reasons."""

    passages: int
    files: int
    read: int
    reused: int
    encoded: int
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Row:
    """A passage of the new shard, and where it stood in the old index: shard and row, or neither."""

    passage: StoredPassage
    shard: int = -1
    row: int = -1


@dataclass
class _Collected:
    rows: list[_Row] = field(default_factory=list)
    records: list[FileRecord] = field(default_factory=list)
    read: int = 0
    reused: int = 0


def no_progress(step: str, done: int, total: int) -> None:
    """Tells nobody."""


def build_shard(task: ShardTask, on_progress: Progress = no_progress) -> ShardReport:
    """Write the shard's files, but for binary codes and token index, which need a look at all shards."""
    home = task.index / task.generation / shard_name(task.number)
    work = work_folder(task.index, task.number)
    home.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    old = [Shard(task.index, task.old, n) for n in range(task.old.shards)] if task.old else []
    found = _collect(task, old, work, on_progress)
    write_passages(home, (row.passage for row in found.rows))
    write_files(home, found.records)
    on_progress("counting words", 0, len(found.rows))
    _write_words(found.rows, old, home)
    encoded = 0
    if task.settings.has("dense"):
        vectors, encoded = _vectors(task, found.rows, old, work, on_progress)
        write_array(home / "vectors.npy", vectors)
    failed = tuple((r.path, r.error) for r in found.records if r.error)
    return ShardReport(len(found.rows), len(found.records), found.read, found.reused, encoded, failed)


def work_folder(index: Path, number: int) -> Path:
    """What an interrupted run left to go on from."""
    return index / "work" / shard_name(number)


def _collect(task: ShardTask, old: Sequence[Shard], work: Path, on_progress: Progress) -> _Collected:
    from gradatim.tasks.documents import ReadLimits, read_files

    known = _known(task, old)
    found = _Collected()
    texts: dict[str, tuple[str, list[StoredPassage]]] = {}
    errors: dict[str, str] = {}
    limits = ReadLimits(task.settings.seconds, task.settings.megabytes, task.settings.most_bytes)
    with Journal(work / "read.jsonl", READERS) as journal:
        to_read = []
        for file in task.files:
            if file.path in known:
                continue
            if (before := journal.get(file)) is not None:
                texts[file.path] = before[0], [_stored(file.path, i, p) for i, p in enumerate(before[1])]
            else:
                to_read.append(file)
        found.read = len(to_read)
        on_progress("reading", 0, len(to_read))
        for i, read in enumerate(read_files(task.folder, to_read, limits, task.settings.jobs), 1):
            path = read.file.path
            if read.error:
                errors[path] = read.error
            else:
                journal.add(read)
                texts[path] = read.sha256, [_stored(path, n, p) for n, p in enumerate(read.passages)]
            on_progress("reading", i, len(to_read))
    for file in task.files:
        first = len(found.rows)
        sha256 = ""
        if file.path in known:
            shard, record = known[file.path]
            sha256 = record.sha256
            found.reused += 1
            found.rows += [
                _Row(old[shard].passages[row], shard, row)
                for row in range(record.first, record.first + record.count)
            ]
        elif file.path in texts:
            sha256, passages = texts[file.path]
            found.rows += [_Row(passage) for passage in passages]
        count = len(found.rows) - first
        error = errors.get(file.path, "")
        found.records.append(
            FileRecord(file.path, file.format, file.size, file.mtime_ns, sha256, first, count, error)
        )
    return found


def _known(task: ShardTask, old: Sequence[Shard]) -> dict[str, tuple[int, FileRecord]]:
    """Files that are as they were when the old index read them: their shard and record."""
    wanted = {file.path: file for file in task.files}
    known = {}
    for number, shard in enumerate(old):
        for record in read_file_table(shard.files, len(shard.passages)):
            file = wanted.get(record.path)
            same = file is not None and not record.error
            same = same and (file.size, file.mtime_ns, file.format) == (  # type: ignore[union-attr]
                record.size, record.mtime_ns, record.format,
            )  # fmt: skip
            if same and record.mtime_ns < task.old_started_ns - _SETTLED_NS:
                known[record.path] = number, record
    return known


def _stored(path: str, number: int, passage: object) -> StoredPassage:
    return StoredPassage(path, number, **vars(passage))


def _write_words(rows: Sequence[_Row], old: Sequence[Shard], home: Path) -> None:
    """Postings: old passages' counts are moved, only new passages are counted."""
    parts = []
    for number, shard in enumerate(old):
        where = np.full(len(shard.passages), -1, np.int64)
        moved = [(row.row, i) for i, row in enumerate(rows) if row.shard == number]
        if moved:
            before, after = zip(*moved, strict=True)
            where[list(before)] = after
            parts.append((shard.postings, where))
    new = [i for i, row in enumerate(rows) if row.shard < 0]
    counted = build_postings(words_of(rows[i].passage.whole) for i in new)
    parts.append((counted, np.array(new, np.int64)))
    write_postings(home, merge_postings(parts, len(rows)))


def _vectors(
    task: ShardTask, rows: Sequence[_Row], old: Sequence[Shard], work: Path, on_progress: Progress
) -> tuple[Float[np.ndarray, "rows dim"], int]:
    """A vector per passage: that of the same text in the old index, or a new one."""
    before = _vectors_of_texts(task, rows, old)
    new = list(dict.fromkeys(row.passage.whole for row in rows if row.passage.whole not in before))
    made = encode_passages(
        new,
        task.settings.encoder,
        work / "embeddings",
        task.settings.device,
        lambda done, total: on_progress("encoding", done, total),
    )
    place = {text: i for i, text in enumerate(new)}
    dim = made.shape[1] if len(new) else next((v.shape[1] for _, v in before.values()), 0)
    vectors = np.zeros((len(rows), dim), np.float32)
    for i, row in enumerate(rows):
        text = row.passage.whole
        if text in place:
            vectors[i] = made[place[text]]
        else:
            at, of = before[text]
            vectors[i] = of[at]
    return vectors, len(new)


def _vectors_of_texts(
    task: ShardTask, rows: Sequence[_Row], old: Sequence[Shard]
) -> dict[str, tuple[int, np.ndarray]]:
    """Old vectors by text, of the texts that the new shard needs."""
    if not task.encoder_unchanged:
        return {}
    wanted = {row.passage.whole for row in rows}
    found: dict[str, tuple[int, np.ndarray]] = {}
    for shard in old:
        if shard.files.has("vectors.npy"):
            for i, passage in enumerate(shard.passages):
                if passage.whole in wanted:
                    found.setdefault(passage.whole, (i, shard.vectors))
    return found
