"""The command line: one-line errors, exit codes, clean standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gradatim import cli, studies
from gradatim.bench import engine
from gradatim.cli import _options
from gradatim.cli.errors import UsageError

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench"))
import toy


@pytest.fixture
def toys(monkeypatch):
    """Put a toy study in the place of the papers."""

    def put(**options):
        study = toy.make(**options)
        monkeypatch.setattr(studies, "load_all", lambda: [study])
        monkeypatch.setattr(studies, "load", lambda name: study)
        return study

    return put


def refused(result, match):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert match in err


def test_errors_are_one_line_and_say_the_fix(run, tmp_path):
    refused(run("run", "no-such-paper"), "There are: 01 energy-transformer")
    refused(run("run", "schedule-refinment"), "did you mean schedule-refinement?")
    refused(run("run", "20", "--budget", "soon"), "write 90s, 5m or 1h")
    refused(run("run", "20", "--engine", "spark"), "use local or ray")
    refused(run("run", "20", "--seeds", "1"), "needs from 2")
    refused(run("run", "20", "--profile", "huge"), "it has quick")
    refused(run("run", "20", "--model", "x"), "takes no --model")
    refused(run("run", "--no-such-option"), "--no-such-option")
    refused(run("report", "--board", "none.sqlite"), "run `gradatim run` first")
    (tmp_path / "notes.txt").write_text("words " * 100)
    refused(run("run", "20", "--board", "notes.txt"), "not a board")
    refused(run("data", "export", "nothing", "--out", "x"), "there are: docstrings")


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LookupError):
        cli.main(["--debug", "run", "no-such-paper"])


def test_version_and_help(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("gradatim 0.")
    code, out, _ = run("run", "--help")
    assert code == 0
    assert "--budget" in out


def test_list_and_show_as_json(run):
    code, out, err = run("list", "--json")
    listed = json.loads(out)
    assert (code, err) == (0, "")
    assert [s["number"] for s in listed] == [1, 2, 3, 4, 7, 8, 9, 10, 11, 13, 16, 17, 20, 21, 22, 23]
    assert all(c["control"] for s in listed for c in s["claims"])
    code, out, _ = run("show", "22", "--json")
    assert json.loads(out)["slug"] == "attention-svm"


def test_run_json_prints_one_document_and_writes_the_report(run, toys, tmp_path):
    toys()
    code, out, err = run("run", "--json", "--jobs", "1")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["studies"][0]["verdicts"][0]["verdict"] == "reproduced"
    assert (tmp_path / "gradatim-report" / "index.html").is_file()
    assert (tmp_path / ".gradatim" / "board.sqlite").is_file()
    _, again, _ = run("run", "--json", "--jobs", "1")
    assert json.loads(again)["studies"][0]["verdicts"] == document["studies"][0]["verdicts"]


def test_run_prints_verdicts_and_where_the_report_lies(run, toys):
    toys()
    code, out, _ = run("run", "--jobs", "1")
    assert code == 0
    assert "reproduced" in out
    assert "index.html" in out
    code, out, _ = run("run", "--jobs", "1", "--quiet")
    assert (code, out) == (0, "")


def test_strict_fails_on_a_failed_trial(run, toys):
    toys(crash=True)
    assert run("run", "--jobs", "1", "--quiet")[0] == 0
    assert run("run", "--jobs", "1", "--quiet", "--strict")[0] == 3


def test_budget_says_what_is_left(run, toys):
    toys(sleep=0.0)
    code, out, _ = run("run", "--budget", "0.0001s", "--jobs", "1")
    assert code == 0
    assert "left by the budget: toy" in out


def test_report_exports_results(run, toys, tmp_path):
    toys()
    run("run", "--quiet", "--jobs", "1")
    code, out, _ = run("report", "--export", "record")
    assert code == 0
    assert "index.html" in out
    exported = json.loads((tmp_path / "record" / "toy.quick.json").read_text())
    assert exported["arms"][0]["seeds"] == [0, 1, 2, 3, 4, 5]


def test_durations():
    assert [_options.seconds(t) for t in ("90", "90s", "5m", "1.5h")] == [90, 90, 300, 5400]
    for text in ("", "-5m", "5 minutes", "0s", "m"):
        with pytest.raises(UsageError, match="no duration"):
            _options.seconds(text)


def test_data_list_and_export(run, tmp_path):
    code, _, _ = run("data", "export", "wine", "--out", "wine.csv")
    assert code == 0
    assert (tmp_path / "wine.csv").read_text().splitlines()[0].endswith("target")
    refused(run("data", "export", "wine", "--out", "wine.csv"), "exists already")


def test_interrupt_says_how_to_go_on(run, toys, monkeypatch):
    toys()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    code, _, err = run("run", "--quiet")
    assert code == 130
    assert "goes on from there" in err


def test_the_command_starts_quickly_without_heavy_imports():
    heavy = ("sentence_transformers", "ray", "cvxpy", "matplotlib")
    code = f"import sys, gradatim.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
