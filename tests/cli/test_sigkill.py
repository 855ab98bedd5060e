"""Killing the real command again and again loses no finished trial and ends in the same table."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

KILLS = 20


def command(folder, *more):
    code = "from gradatim.cli import main; main()"
    return [sys.executable, "-c", code, "run", "22", "--board", str(folder / "board.sqlite"), *more]


def finished(folder):
    """Everything the board holds, by trial."""
    board = folder / "board.sqlite"
    if not board.exists():
        return {}
    with sqlite3.connect(f"file:{board}?mode=ro", uri=True) as db:
        try:
            rows = db.execute("select study, arm, seed, profile, status, metrics from trials").fetchall()
        except sqlite3.OperationalError:  # killed before the table was made
            return {}
    return {row[:4]: row[4:] for row in rows}


def table(folder):
    done = subprocess.run(
        command(folder, "--json", "--out", str(folder / "report")),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    (study,) = json.loads(done.stdout)["studies"]
    return study["verdicts"], study["arms"]


def test_twenty_kills_end_in_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = table(whole)
    rng = random.Random(0)
    held: dict = {}
    interrupted = 0
    for kill in range(KILLS):
        process = subprocess.Popen(
            command(killed, "--quiet", "--out", str(killed / "report")),
            cwd=killed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.5, 7.0))
        if process.poll() is None:
            interrupted += 1
            # Half of the time the workers survive their parent, as after the kernel's out-of-memory kill.
            if kill % 2:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = finished(killed)
        assert held.items() <= now.items()
        held = now
    assert interrupted >= KILLS // 2
    assert held
    assert table(killed) == expected
    assert held.items() <= finished(killed).items()
