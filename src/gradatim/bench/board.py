"""The board: every finished trial in one SQLite file that survives crashes and is safe to share.

Only whole trials are written, each in its own transaction, so a killed process loses at most the trials
in flight. Write-ahead logging lets two processes use one board at the same time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gradatim.bench.study import Curve, Outcome, Trial

APPLICATION_ID = 0x67726164  # "grad"
MAGIC = b"SQLite format 3\x00"
MIGRATIONS = (
    """CREATE TABLE trials (
        key TEXT PRIMARY KEY, study TEXT NOT NULL, arm TEXT NOT NULL, seed INTEGER NOT NULL,
        profile TEXT NOT NULL, scale TEXT NOT NULL, status TEXT NOT NULL, metrics TEXT NOT NULL,
        curves TEXT NOT NULL, reason TEXT NOT NULL, traceback TEXT NOT NULL, seconds REAL NOT NULL,
        environment TEXT NOT NULL, finished TEXT NOT NULL)""",
    "CREATE INDEX trials_by_study ON trials (study, profile)",
)


class BoardError(Exception):
    """A board file that cannot be used; the message is one line and says the fix."""


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial as the board keeps it."""

    key: str
    study: str
    arm: str
    seed: int
    profile: str
    scale: Mapping[str, Any]
    status: Literal["ok", "failed"]
    outcome: Outcome
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)
    finished: str = ""


def trial_key(trial: Trial, code: str, data: str, versions: Mapping[str, str]) -> str:
    """SHA-256 of all that a trial's numbers depend on."""
    arm = {"name": trial.arm.name, "settings": dict(trial.arm.settings)}
    what = [trial.study, arm, trial.seed, trial.profile, dict(trial.scale), code, data, dict(versions)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class Board:
    """Store of finished trials.

    `path` is created with its folder when absent. Raises BoardError, leaving the file untouched, when
    it is corrupt, was written by another program, or by a newer version of this one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _refuse_foreign(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except (OSError, sqlite3.Error) as e:
            raise BoardError(
                f"cannot open the board {self.path}: {e}; choose another with --board FILE"
            ) from e
        try:
            self._prepare()
        except sqlite3.Error as e:
            self._db.close()
            raise BoardError(
                f"the board {self.path} is damaged ({e}); move it away, or choose another with --board FILE"
            ) from e
        except BoardError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # Tables and identity are written in one transaction before WAL is switched on, so the file on
        # disk is either empty or already carries the application id.
        db = self._db
        (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(" ".join(sound.split()))
        db.execute("BEGIN IMMEDIATE")
        try:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found > len(MIGRATIONS):
                raise BoardError(
                    f"the board {self.path} was written by a newer gradatim (schema {found}, this one knows"
                    f" {len(MIGRATIONS)}); upgrade gradatim, or choose another with --board FILE"
                )
            if found < len(MIGRATIONS):
                for statement in MIGRATIONS[found:]:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")

    def put(self, record: TrialRecord, *, replace: bool = False) -> None:
        """Write one finished trial; a failure never hides a success unless `replace` is set."""
        unless = "" if replace else "WHERE trials.status <> 'ok'"
        self._db.execute(
            f"""INSERT INTO trials VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)
            ON CONFLICT (key) DO UPDATE SET status = excluded.status, metrics = excluded.metrics,
                curves = excluded.curves, reason = excluded.reason, traceback = excluded.traceback,
                seconds = excluded.seconds, environment = excluded.environment,
                finished = excluded.finished {unless}""",
            (
                record.key, record.study, record.arm, record.seed, record.profile,
                json.dumps(dict(record.scale), sort_keys=True), record.status,
                json.dumps(dict(record.outcome.metrics)), _dump_curves(record.outcome.curves),
                record.reason, record.traceback, record.seconds,
                json.dumps(dict(record.environment)),
                record.finished or datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )  # fmt: skip

    def get(self, keys: Iterable[str]) -> dict[str, TrialRecord]:
        """The records among `keys` that the board holds."""
        found = {}
        for key in keys:
            row = self._db.execute("SELECT * FROM trials WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = _record(row)
        return found

    def count(self, study: str | None = None) -> int:
        """How many trials are held, of one study or of all."""
        where, values = ("WHERE study = ?", (study,)) if study else ("", ())
        (n,) = self._db.execute(f"SELECT COUNT(*) FROM trials {where}", values).fetchone()
        return int(n)

    def mean_seconds(self, study: str, profile: str) -> float | None:
        """Mean core-seconds of a trial of this study and profile, whatever code it ran; None if unknown."""
        (mean,) = self._db.execute(
            "SELECT AVG(seconds) FROM trials WHERE study = ? AND profile = ? AND status = 'ok'",
            (study, profile),
        ).fetchone()
        return None if mean is None else float(mean)

    def close(self) -> None:
        """Close the file; the board cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_foreign(path: Path) -> None:
    other = "choose another with --board FILE"
    if path.is_dir():
        raise BoardError(f"the board {path} is a folder; {other}")
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as e:
        raise BoardError(f"cannot read the board {path}: {e.strerror}; {other}") from e
    if head[:16] != MAGIC or len(head) < 100:
        raise BoardError(f"{path} is not a board (not an SQLite file); {other}")
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise BoardError(f"{path} is an SQLite file of another program; {other}")


def _dump_curves(curves: Mapping[str, Curve]) -> str:
    return json.dumps(
        {k: {"x": list(c.x), "y": list(c.y), "x_label": c.x_label, "y_label": c.y_label}
         for k, c in curves.items()}
    )  # fmt: skip


def _record(row: tuple[Any, ...]) -> TrialRecord:
    key, study, arm, seed, profile, scale, status, metrics, curves, reason, trace, seconds, env, at = row
    outcome = Outcome(json.loads(metrics), {k: Curve(**c) for k, c in json.loads(curves).items()})
    return TrialRecord(
        key, study, arm, seed, profile, json.loads(scale), status, outcome, reason, trace, seconds,
        json.loads(env), at,
    )  # fmt: skip
