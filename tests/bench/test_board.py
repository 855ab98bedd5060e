"""The board keeps whole trials, survives kills, and refuses what is not its own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.bench import Arm, Curve, Outcome, Trial
from gradatim.bench.board import APPLICATION_ID, MIGRATIONS, Board, BoardError, TrialRecord, trial_key


def record(key="k", status="ok", value=1.0):
    outcome = Outcome({"m": value}, {"c": Curve([0, 1], [2.0, 3.0], "step", "loss")})
    return TrialRecord(key, "toy", "a", 3, "quick", {"n": 5}, status, outcome, seconds=2.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "board.sqlite"


def test_round_trip_keeps_every_field(path):
    with Board(path) as board:
        board.put(record())
    with Board(path) as board:
        (found,) = board.get(["k", "absent"]).values()
    assert replace(found, finished="") == record()
    assert found.finished.startswith("20")


def test_failure_never_hides_a_success_unless_measured_afresh(path):
    with Board(path) as board:
        board.put(record(value=1.0))
        board.put(record(status="failed"))
        assert board.get(["k"])["k"].status == "ok"
        board.put(record(value=2.0), replace=True)
        assert board.get(["k"])["k"].outcome.metrics == {"m": 2.0}


def test_success_replaces_a_failure(path):
    with Board(path) as board:
        board.put(record(status="failed"))
        board.put(record())
        assert board.get(["k"])["k"].status == "ok"


def test_two_boards_on_one_file(path):
    with Board(path) as one, Board(path) as two:
        for i in range(20):
            (one if i % 2 else two).put(record(key=str(i)))
        assert one.count() == two.count() == 20
        assert one.mean_seconds("toy", "quick") == 2.0
        assert one.mean_seconds("other", "quick") is None


def test_older_schema_is_migrated_and_keeps_its_trials(path):
    path.parent.mkdir(parents=True)
    db = sqlite3.connect(path)
    db.execute(MIGRATIONS[0])
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")
    db.execute(
        "INSERT INTO trials VALUES ('k','toy','a',3,'quick','{}','ok','{\"m\": 1.0}','{}','','',1.0,'{}','')"
    )
    db.commit()
    db.close()
    with Board(path) as board:
        assert board.get(["k"])["k"].outcome.metrics == {"m": 1.0}
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.close()


def refused(path, match):
    before = path.read_bytes()
    with pytest.raises(BoardError, match=match) as caught:
        Board(path)
    assert "\n" not in str(caught.value)
    assert "--board FILE" in str(caught.value)
    assert path.read_bytes() == before


def test_foreign_files_are_refused_untouched(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 20)
    refused(text, "not a board")
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    refused(other, "another program")


def test_newer_schema_is_refused_untouched(path):
    Board(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    refused(path, "newer gradatim")


def test_folder_is_refused(tmp_path):
    with pytest.raises(BoardError, match="is a folder"):
        Board(tmp_path)


def test_damaged_pages_are_refused(path):
    with Board(path) as board:
        for i in range(200):
            board.put(record(key=str(i)))
    data = bytearray(path.read_bytes())
    data[4096 : 3 * 4096] = b"\xff" * (2 * 4096)
    path.write_bytes(data)
    refused(path, "damaged")


@settings(max_examples=40, deadline=None)
@given(noise=st.binary(min_size=1, max_size=300), keep=st.integers(0, 120))
def test_any_bytes_give_a_board_or_one_line(tmp_path_factory, noise, keep):
    path = tmp_path_factory.mktemp("b") / "board.sqlite"
    Board(path).close()
    data = path.read_bytes()
    path.write_bytes(data[:keep] + noise + data[keep + len(noise) :])
    lines = []
    try:
        Board(path).close()
    except BoardError as e:
        lines = str(e).splitlines()
    assert len(lines) <= 1


def test_key_depends_on_everything_a_number_depends_on():
    trial = Trial("toy", Arm("a", {"lr": 1.0}), 0, "quick", {"n": 1})
    base = trial_key(trial, "code", "data", {"torch": "1"})
    assert base == trial_key(
        replace(trial, arm=Arm("a", {"lr": 1.0}, label="drawn")), "code", "data", {"torch": "1"}
    )
    others = [
        trial_key(replace(trial, seed=1), "code", "data", {"torch": "1"}),
        trial_key(replace(trial, profile="standard"), "code", "data", {"torch": "1"}),
        trial_key(replace(trial, scale={"n": 2}), "code", "data", {"torch": "1"}),
        trial_key(replace(trial, arm=Arm("a", {"lr": 2.0})), "code", "data", {"torch": "1"}),
        trial_key(replace(trial, arm=Arm("b", {"lr": 1.0})), "code", "data", {"torch": "1"}),
        trial_key(trial, "edited", "data", {"torch": "1"}),
        trial_key(trial, "code", "other", {"torch": "1"}),
        trial_key(trial, "code", "data", {"torch": "2"}),
    ]
    assert len({base, *others}) == 9


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from gradatim.bench.board import Board
from test_board import record
board = Board(sys.argv[1])
for i in range(10_000):
    board.put(record(key=str(i)))
    print(i, flush=True)
"""


def test_sigkill_loses_no_written_trial(path):
    from pathlib import Path

    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), here], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(50)]
    process.kill()
    process.stdout.close()
    process.wait()
    last = int(lines[-1])
    with Board(path) as board:
        assert len(board.get(str(i) for i in range(last + 1))) == last + 1
