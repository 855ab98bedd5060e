"""`gradatim identify` on saved learners and on callables of the user's."""

import json

import pytest

from gradatim.cli import main
from gradatim.models.constructions import gradient_descent


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["identify", *map(str, arguments)])
    return stopped.value.code


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = ("--contexts", 60)


def test_a_saved_learner_gets_its_page(in_folder, capsys):
    gradient_descent(3, 6, lr=4.0).float().save_pretrained(in_folder / "learner")
    code = run("--model", "learner", "--points", 7, "--x", "uniform", "--at", -1, "--no-layers", *FEW)
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("GD(1 step, 4, mean)")
    page = (in_folder / "gradatim-identify" / "index.html").read_text(encoding="utf-8")
    assert "<h1>GD(1 step, 4, mean)</h1>" in page
    assert "<svg" in page
    answer = json.loads((in_folder / "gradatim-identify" / "answer.json").read_text(encoding="utf-8"))
    assert answer["fits"]


def test_a_callable_of_the_user(in_folder, capsys):
    (in_folder / "my_learner_module.py").write_text(
        "from gradatim.probes import Ridge\n\ndef answer(x, y):\n    return Ridge(0.5).predict(x, y)\n",
        encoding="utf-8",
    )
    assert run("--model", "my_learner_module:answer", "--dim", 3, "--json", *FEW) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["best"] == "ridge(0.5)"
    assert answer["page"].endswith("index.html")


def test_a_boolean_task(in_folder, capsys):
    (in_folder / "my_boolean_module.py").write_text(
        "from gradatim.probes import Elimination\n\nanswer = Elimination('conjunction').predict\n",
        encoding="utf-8",
    )
    code = run(
        "--model", "my_boolean_module:answer", "--task", "conjunction", "--dim", 5, "--points", 12, *FEW
    )
    assert code == 0
    assert capsys.readouterr().out.startswith("elimination")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nowhere"), "no folder and no module:name"),
        (("--model", "json:nothing", "--dim", 2), "has no callable nothing"),
        (("--model", "no_such_module_here:f", "--dim", 2), "cannot import no_such_module_here"),
        (("--model", "json:loads"), "give --dim"),
        (("--model", "json:loads", "--dim", 2, "--task", "chess"), "unknown; there are linear"),
        (("--model", "json:loads", "--dim", 2, "--x", "cauchy"), "--task linear: "),
        (("--model", "empty",), "holds no config.json"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(in_folder, capsys, arguments, message):
    (in_folder / "empty").mkdir()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (in_folder / "gradatim-identify").exists()


def test_a_learner_that_looks_ahead_is_refused(in_folder, capsys):
    (in_folder / "my_peeking_module.py").write_text("def answer(x, y):\n    return y\n", encoding="utf-8")
    assert run("--model", "my_peeking_module:answer", "--dim", 2, *FEW) == 2
    assert "change with the label" in capsys.readouterr().err
