"""`gradatim index`: a folder into an index that can be searched while the next one is made.

An index is a folder: `manifest.json`, the generation it names, a lock and, while one is being made, `work/`
with what has been read and encoded so far. A run that is killed at any moment leaves the old manifest with
the old generation; the same command goes on from `work/`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.inference.search.errors import IndexBusyError, IndexDamagedError, SearchError
from gradatim.inference.search.file_table import read_file_table
from gradatim.inference.search.files import MANIFEST, Manifest, parts_below, read_manifest, sync_folder
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import Shard
from gradatim.inference.search.shard_building import READERS, ShardReport, ShardTask, build_shard, no_progress

if TYPE_CHECKING:
    from gradatim.tasks.documents import FoundFile, Walk

MOST_LISTED = 200


@dataclass(frozen=True)
class BuildReport:
    """What an index run did. `changed` is False where everything was as it should be already."""

    changed: bool
    files: int
    passages: int
    read: int
    reused: int
    encoded: int
    removed: int
    skipped: dict[str, tuple[int, str]]
    failed: tuple[tuple[str, str], ...]
    bytes: int
    seconds: float


def build_index(
    folder: str | Path,
    index: str | Path,
    settings: IndexSettings | None = None,
    on_progress: Progress = no_progress,
) -> BuildReport:
    """Make the index of `folder`, or bring it up to date.

    Raises SearchError for a folder that is none or whose place is taken, IndexBusyError while another process
    writes, IndexDamagedError when there is an index that cannot be trusted (`fresh` replaces it).
    """
    from filelock import FileLock, Timeout

    start = time.monotonic()
    settings = settings or IndexSettings()
    folder, index = Path(folder), Path(index)
    if not folder.is_dir():
        raise SearchError(f"{folder} is no folder; give one with documents in it")
    _claim(index, folder)
    try:
        with FileLock(index / ".lock", timeout=0):
            return _build(folder, index, settings, on_progress, start)
    except Timeout as error:
        raise IndexBusyError(f"another process is writing to {index}; wait for it to end") from error
    except OSError as error:
        raise SearchError(f"{index}: {error.strerror or error}") from error


def _claim(index: Path, folder: Path) -> None:
    """Refuse to write into a folder that holds anything but an index."""
    if index.exists():
        if not index.is_dir():
            raise SearchError(f"{index} is a file; choose another --out")
        others = [p.name for p in index.iterdir() if not _is_ours(p.name)]
        if others:
            raise SearchError(f"{index} holds something else ({sorted(others)[0]}); choose another --out")
    if index.resolve() == folder.resolve():
        raise SearchError(f"the index cannot be the folder itself; choose another --out than {index}")
    try:
        index.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"{index} cannot be made ({error.strerror})") from error


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, f"{MANIFEST}.unfinished", ".lock", "work") or bool(
        re.fullmatch(r"g\d{6,12}", name)
    )


def _build(
    folder: Path, index: Path, settings: IndexSettings, on_progress: Progress, start: float
) -> BuildReport:
    from gradatim.tasks.documents import walk

    started_ns = time.time_ns()
    old = None if settings.fresh else _old(index)
    if settings.fresh:
        shutil.rmtree(index / "work", ignore_errors=True)
    _clean(index, old.generation if old else _generation(index))
    on_progress("looking at files", 0, 0)
    found = walk(
        folder,
        hidden=settings.hidden,
        follow_links=settings.follow_links,
        most_bytes=settings.most_bytes,
        without=index,
    )
    if not found.files:
        raise SearchError(f"{folder} holds no file that can be read; {_said(found)}")
    remembered = _remembered(folder, settings)
    removed, unchanged = _compare(index, old, found.files, settings, remembered)
    if old is not None and unchanged:
        return BuildReport(
            False, old.files, old.passages, 0, old.files, 0, 0, _skipped(found), (), _size(index, old),
            time.monotonic() - start,
        )  # fmt: skip
    generation = f"g{_next(index):06d}"
    tasks = _tasks(folder, index, generation, found.files, settings, old, remembered)
    reports = run_shards(tasks, settings, on_progress)
    passages = sum(r.passages for r in reports)
    if not passages:
        shutil.rmtree(index / generation)
        example = next((f"; {p}: {why}" for r in reports for p, why in r.failed), "")
        raise SearchError(f"{folder}: no file gave any text{example}")
    remembered |= _of_all_shards(index, generation, settings, old, on_progress)
    on_progress("writing", 0, 0)
    failed = tuple(f for r in reports for f in r.failed)
    manifest = Manifest(
        generation=generation,
        folder=str(folder.absolute()).encode("utf-8", "replace").decode(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        shards=settings.shards,
        passages=passages,
        files=sum(r.files for r in reports) - len(failed),
        settings={**remembered, "started_ns": started_ns},
        skipped={"reasons": dict(found.skipped), "failed": [list(f) for f in failed[:MOST_LISTED]]},
        parts=parts_below(index / generation),
    )
    for place, _, _ in os.walk(index / generation):
        sync_folder(Path(place))
    manifest.write(index)
    _clean(index, generation)
    shutil.rmtree(index / "work", ignore_errors=True)
    return BuildReport(
        True, manifest.files, passages, sum(r.read for r in reports), sum(r.reused for r in reports),
        sum(r.encoded for r in reports), removed, _skipped(found), failed, _size(index, manifest),
        time.monotonic() - start,
    )  # fmt: skip


def _old(index: Path) -> Manifest | None:
    if not (index / MANIFEST).exists():
        return None
    try:
        return read_manifest(index)
    except IndexDamagedError as error:
        raise IndexDamagedError(f"{error} (with --fresh)") from error


def _generation(index: Path) -> str:
    """The generation that must not be deleted while a fresh one is made."""
    try:
        return read_manifest(index).generation
    except SearchError:
        return ""


def _clean(index: Path, keep: str) -> None:
    """Remove generations that no manifest names: older ones, and what a killed run left."""
    for path in index.iterdir():
        if re.fullmatch(r"g\d{6,12}", path.name) and path.name != keep:
            shutil.rmtree(path, ignore_errors=True)


def _next(index: Path) -> int:
    numbers = [int(p.name[1:]) for p in index.iterdir() if re.fullmatch(r"g\d{6,12}", p.name)]
    return max(numbers, default=0) % 10**11 + 1


def _remembered(folder: Path, settings: IndexSettings) -> dict[str, Any]:
    """Settings that the new index keeps, with the digest of its encoder."""
    kept = {**settings.kept(), "readers": READERS}
    if settings.has("dense"):
        from gradatim.models.text_encoder import EncoderUnavailableError, check_text_encoder, encoder_digest

        try:
            check_text_encoder(settings.encoder)
            kept["encoder_digest"] = encoder_digest(settings.encoder)
        except EncoderUnavailableError as error:
            raise SearchError(f"{error}; or index without dense in --methods") from error
    return kept


def _compare(
    index: Path,
    old: Manifest | None,
    files: Sequence[FoundFile],
    settings: IndexSettings,
    remembered: dict[str, Any],
) -> tuple[int, bool]:
    """How many files of the old index are gone, and whether nothing at all has to be done."""
    if old is None:
        return 0, False
    now = {f.path: (f.size, f.mtime_ns, f.format) for f in files}
    before: dict[str, tuple[int, int, str]] = {}
    settled = True
    limit = int(old.settings.get("started_ns", 0)) - 2_000_000_000
    for number in range(old.shards):
        shard = Shard(index, old, number)
        for record in read_file_table(shard.files, len(shard.passages)):
            before[record.path] = (record.size, record.mtime_ns, record.format)
            settled = settled and record.mtime_ns < limit and not record.error
    removed = sum(path not in now for path in before)
    same_settings = all(old.settings.get(name) == value for name, value in remembered.items())
    return removed, settled and same_settings and before == now and old.shards == settings.shards


def _tasks(
    folder: Path,
    index: Path,
    generation: str,
    files: Sequence[FoundFile],
    settings: IndexSettings,
    old: Manifest | None,
    remembered: dict[str, Any],
) -> list[ShardTask]:
    """A shard per number; a file stays in its shard whatever other files come and go."""
    readable = old if old is not None and old.settings.get("readers") == READERS else None
    shares: list[list[FoundFile]] = [[] for _ in range(settings.shards)]
    for file in files:
        shares[zlib.crc32(file.path.encode("utf-8", "surrogatepass")) % settings.shards].append(file)
    digest = remembered.get("encoder_digest")
    same_encoder = readable is not None and readable.settings.get("encoder_digest") == digest is not None
    return [
        ShardTask(
            folder.absolute(), index.absolute(), generation, number, tuple(share), settings, readable,
            int(readable.settings.get("started_ns", 0)) if readable else 0, same_encoder,
        )
        for number, share in enumerate(shares)
    ]  # fmt: skip


def run_shards(
    tasks: Sequence[ShardTask], settings: IndexSettings, on_progress: Progress
) -> list[ShardReport]:
    """Make the shards here, one after the other, or on Ray, which shares this machine's file system."""
    if settings.engine == "local":
        return [build_shard(task, on_progress) for task in tasks]
    from gradatim.inference.search.on_ray import build_on_ray

    return build_on_ray(tasks, settings, on_progress)


def _of_all_shards(
    index: Path, generation: str, settings: IndexSettings, old: Manifest | None, on_progress: Progress
) -> dict[str, Any]:
    """What needs a look at every shard: the model of binary codes, the index of tokens."""
    if not settings.has("binary") and not settings.has("seal") and not settings.reranker:
        return {}
    parts = parts_below(index / generation)
    unfinished = Manifest(generation, "", "", settings.shards, 0, 0, {}, {}, parts)
    shards = [Shard(index, unfinished, number) for number in range(settings.shards)]
    passages = [list(shard.passages) for shard in shards]
    remembered: dict[str, Any] = {}
    if settings.has("binary"):
        from gradatim.inference.search.code_building import build_codes

        texts = [[passage.whole for passage in shard] for shard in passages]
        state = build_codes(index, generation, texts, settings, old, on_progress)
        remembered["codes"] = {"trained": state.trained, "new": state.new}
    if settings.has("seal"):
        from gradatim.inference.search.seal_building import build_seal

        state = build_seal(index, generation, passages, settings, old, on_progress)
        remembered["generator"] = {"trained": state.trained, "new": state.new}
    if settings.reranker:
        from gradatim.inference.search.reranker_building import build_reranker

        everything = [passage for shard in passages for passage in shard]
        everything.sort(key=lambda p: (p.file, p.number))
        build_reranker(index / generation / "shared" / "reranker", everything, settings.encoder, on_progress)
    return remembered


def _skipped(found: Walk) -> dict[str, tuple[int, str]]:
    return {reason: (count, found.examples[reason]) for reason, count in found.skipped.most_common()}


def _said(found: Walk) -> str:
    told = ", ".join(f"{count} {reason}" for reason, count in found.skipped.most_common(4))
    return f"left out: {told}" if told else "it is empty"


def _size(index: Path, manifest: Manifest) -> int:
    return sum(size for size, _ in manifest.parts.values()) + (index / MANIFEST).stat().st_size
