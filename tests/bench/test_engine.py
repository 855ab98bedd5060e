"""The engine runs what is missing, survives what trials do to it, and gives the same figures anyhow."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from gradatim.bench import engine
from gradatim.bench.board import Board
from gradatim.bench.engine import PlanError, RunOptions

HERE = Path(__file__).parent


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path / "board.sqlite") as b:
        yield b


def go(study, board, **options):
    options = RunOptions(**{"jobs": 1, **options})
    plan = engine.plan(study, options)
    seen = []
    engine.run(plan, board, options, seen.append)
    return engine.report(plan, board), seen


def metrics(report):
    return {
        (arm, seed): outcome.metrics["score"]
        for arm, by_seed in report.results.outcomes.items()
        for seed, outcome in by_seed.items()
    }


def test_runs_every_trial_once_and_judges(board):
    report, seen = go(toy.make(), board)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 12, 12)
    assert report.verdicts[0].word == "reproduced"
    assert (report.missing, report.failed) == (0, [])
    assert report.results.curves("shift", "loss")[0].y_label == ""
    again, seen = go(toy.make(), board)
    assert (len(seen), seen[0].cached) == (1, 12)
    assert metrics(again) == metrics(report)


def test_more_seeds_compute_only_the_new_ones(board):
    go(toy.make(), board, seeds=3)
    _, seen = go(toy.make(), board)
    assert (seen[0].cached, seen[-1].done) == (6, 12)


def test_fresh_measures_again(board):
    go(toy.make(), board)
    _, seen = go(toy.make(), board, fresh=True)
    assert (seen[0].cached, len(seen)) == (0, 13)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_same_figures_batched_or_not_in_one_process_or_two(board, tmp_path, batched, jobs):
    expected = {
        (arm.name, seed): toy.trial(arm, seed, {}).metrics["score"]
        for arm in toy.make().arms
        for seed in range(6)
    }
    report, _ = go(toy.make(batched), board, jobs=jobs)
    assert metrics(report) == expected


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"), [("crash", "ValueError: a crash on purpose"), ("nan", "metric 'score' is nan")]
)
def test_a_failing_trial_is_kept_with_its_reason_and_the_rest_go_on(board, batched, fault, reason):
    report, seen = go(toy.make(batched, **{fault: True}), board)
    ((arm, seed, why),) = [(f.arm, f.seed, f.reason) for f in report.failed]
    assert (arm, seed, why) == ("shift", 1, reason)
    assert (seen[-1].done, seen[-1].failed) == (12, 1)
    assert report.verdicts[0].estimate.n == 5
    assert report.verdicts[0].failed_trials == 1
    if fault == "crash":
        assert "Traceback" in report.failed[0].traceback


def test_failed_trials_are_tried_again_and_a_success_stays(board, tmp_path):
    study = toy.make(crash=True)
    go(study, board)
    _, seen = go(study, board)
    assert (seen[0].cached, seen[-1].done) == (11, 12)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_trial_past_its_limit_is_stopped(board, jobs):
    start = time.monotonic()
    report, _ = go(toy.make(hang=True), board, jobs=jobs, timeout=1.0)
    assert time.monotonic() - start < 25
    assert [f.reason for f in report.failed] == ["TrialTimeout: ran past its limit of 1 s (--timeout)"]
    assert len(metrics(report)) == 11


def test_a_worker_that_dies_once_costs_nothing(board, tmp_path):
    report, _ = go(toy.make(die_once=str(tmp_path / "died")), board, jobs=2)
    assert (tmp_path / "died").exists()
    assert (len(metrics(report)), report.failed) == (12, [])


def test_a_trial_that_always_kills_its_worker_is_found_and_the_rest_go_on(board):
    report, _ = go(toy.make(die_always=True), board, jobs=2)
    assert [(f.arm, f.seed) for f in report.failed] == [("shift", 1)]
    assert "worker process died" in report.failed[0].reason
    assert len(metrics(report)) == 11


def test_bad_requests_are_one_line_and_say_the_fix(board):
    for options, match in [
        ({"profile": "huge"}, "it has quick"),
        ({"seeds": 1}, "needs from 2"),
        ({"overrides": {"model": "x"}}, "takes no --model"),
    ]:
        with pytest.raises(PlanError, match=match) as caught:
            engine.plan(toy.make(), RunOptions(**options))
        assert "\n" not in str(caught.value)


def test_overrides_change_the_key(board):
    one = engine.plan(toy.make(), RunOptions())
    two = engine.plan(toy.make(), RunOptions(overrides={"sleep": 0.001}))
    assert not set(one.trials) & set(two.trials)
    assert two.scale["sleep"] == 0.001


def test_time_left_uses_the_boards_own_timings(board):
    options = RunOptions(jobs=2)
    plan = engine.plan(toy.make(sleep=0.02), options)
    assert engine.estimated_seconds(plan, board, options) == pytest.approx(0.5)
    engine.run(plan, board, options)
    assert engine.estimated_seconds(plan, board, options) == 0.0
    mean = board.mean_seconds("toy", "quick")
    assert engine.estimated_seconds(plan, board, RunOptions(jobs=2, fresh=True)) == pytest.approx(
        12 * mean / 2
    )


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import toy
from gradatim.bench import engine
from gradatim.bench.board import Board
if __name__ == "__main__":
    options = engine.RunOptions(jobs=2)
    plan = engine.plan(toy.make(sleep=0.05), options)
    engine.run(plan, Board({board!r}), options, lambda p: print(p.done, flush=True))
"""


def start(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), board=str(tmp_path / "board.sqlite")))
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_killing_the_run_keeps_what_was_written_and_leaves_no_workers(tmp_path):
    process = start(tmp_path)
    for line in process.stdout:
        if int(line) >= 4:
            break
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert workers
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{w}") for w in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [w for w in workers if os.path.exists(f"/proc/{w}")]
    with Board(tmp_path / "board.sqlite") as board:
        held = board.count()
        assert 4 <= held < 12
        report, seen = go(toy.make(sleep=0.05), board, jobs=2)
        assert (seen[0].cached, report.missing) == (held, 0)


def test_ctrl_c_stops_cleanly(tmp_path):
    process = start(tmp_path)
    for line in process.stdout:
        if int(line) >= 2:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.count("Traceback") <= 1, errors
    assert "KeyboardInterrupt" in errors
    with Board(tmp_path / "board.sqlite") as board:
        assert board.count() >= 2


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_ray_gives_the_same_figures_and_survives_a_killed_worker(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with Board(tmp_path / "ray.sqlite") as store, Board(tmp_path / "local.sqlite") as local:
            study = toy.make(die_once=str(tmp_path / "died"), crash=True)
            report, _ = go(study, store, engine="ray", jobs=2)
            assert (tmp_path / "died").exists()
            expected, _ = go(study, local)
            assert metrics(report) == metrics(expected)
            assert [f.reason for f in report.failed] == ["ValueError: a crash on purpose"]
    finally:
        ray.shutdown()


def test_no_cluster_at_that_address_is_one_line(board):
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(PlanError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        go(toy.make(), board, engine="ray", ray_address="127.0.0.1:1")


def test_reports_are_plain_json(board):
    import json

    report, _ = go(toy.make(nan=True), board)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["verdicts"][0]["verdict"] == "reproduced"
    assert document["verdicts"][0]["paper"] == 1.0
    assert math.isclose(
        document["arms"][0]["metrics"]["score"]["mean"],
        report.arm_estimates(toy.make().arms[0])["score"].mean,
    )
    assert document["failed"] == [{"arm": "shift", "seed": 1, "reason": "metric 'score' is nan"}]
    assert document["environment"]["versions"]["torch"]
