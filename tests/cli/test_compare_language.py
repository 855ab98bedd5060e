"""`gradatim compare language`: a whole run with both tables, its document, and one line for what is wrong."""

from __future__ import annotations

import json

import pytest

from gradatim.cli import main
from gradatim.compare import language


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADATIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRADATIM_BOARD", raising=False)
    monkeypatch.setitem(language.SIZES, "tiny", (16, 1, 2))
    (tmp_path / "book.txt").write_text("the river and the stone, the cloud and the engine. " * 60)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "language", *arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


ARGUMENTS = (
    "--data", "book.txt", "--arm", "transformer", "--arm", "lstm", "--arm", "ebt-s2", "--steps", "4",
    "--batch", "2", "--context", "12", "--rate", "0.003", "--seeds", "2", "--jobs", "1",
)  # fmt: skip


def test_both_tables_are_shown_and_the_second_run_costs_nothing(capsys, tmp_path):
    code, out, _ = run(capsys, *ARGUMENTS, "--save", "won")
    assert code == 0
    first, second = out.split("equal parameters, equal steps")
    assert "equal parameters, equal compute" in first
    for table in (first, second):
        for words in (
            "nats/char",
            "bits/byte",
            "perpl.",
            "TFLOPs",
            "CPU s",
            "transformer",
            "lstm",
            "ebt-s2",
            "n-gram",
        ):
            assert words in table, words
    assert "does better than any of them" in out  # four updates teach no network what counting does
    assert "best mean nats/char at equal compute: " in out
    assert "saved: won" in out
    names = sorted(p.name for p in (tmp_path / "won").iterdir())
    assert "model.safetensors" in names
    assert "tokenizer.json" in names
    assert not [n for n in names if n.endswith((".bin", ".pkl", ".pt"))]

    code, out, _ = run(capsys, *ARGUMENTS, "--json")
    assert code == 0
    document = json.loads(out)
    (study,) = document["studies"]
    assert {a["arm"]: a["n"] for a in study["arms"]} == {
        "transformer": 2, "lstm": 2, "ebt-s2": 2, "n-gram": 2, "frequencies": 2,
    }  # fmt: skip
    assert document["winner"]["arm"] in ("transformer", "lstm", "ebt-s2")
    metrics = study["arms"][0]["metrics"]
    assert {"nats/char at equal compute", "nats/char at equal steps", "parameters"} <= set(metrics)
    assert not study["failed"]
    assert "kept from before" not in out

    code, _, error = run(capsys, *ARGUMENTS, "--save", "won")
    assert code == 2
    assert "exists already" in error


def test_arms_are_listed(capsys):
    code, out, _ = run(capsys, "--list-arms")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == set(language.ARMS)
    code, out, _ = run(capsys, "--list-arms", "--json")
    assert {"arm", "label", "role"} == set(json.loads(out)[0])


BAD = {
    (): "--data is missing",
    ("--data", "none.txt"): "does not exist",
    ("--data", "book.txt", "--arm", "lstn"): "did you mean lstm",
    ("--data", "book.txt", "--size", "huge"): "use tiny, small",
    ("--data", "book.txt", "--judge", "time"): "use compute, steps",
    ("--data", "book.txt", "--tokens", "words"): "use characters or bytes",
    ("--data", "book.txt", "--tokenizer", "nowhere"): "is no folder",
    ("--data", "book.txt", "--context", "4000"): "shorter --context",
    ("--data", "book.txt", "--rate", "-1"): "above 0",
    ("--data", "book.txt", "--seeds", "1"): "--seeds 1",
    ("--data", "book.txt", "--engine", "slurm"): "use local or ray",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_is_wrong_is_one_line_and_nothing_is_written(capsys, tmp_path, arguments):
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, error = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert BAD[arguments] in error
    assert len(error.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir() if p.name not in (*before, ".gradatim")] == []
