import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gradatim.cli.errors import UsageError
from gradatim.cli.schedule import app
from gradatim.optim import RefinedSchedule, refine_schedule
from gradatim.optim.shapes import SHAPES

runner = CliRunner()
NORMS = np.concatenate([np.linspace(8, 1, 20), np.ones(180)])


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("step,grad_norm\n" + "".join(f"{i},{g}\n" for i, g in enumerate(NORMS)))
    return path


def invoke(*arguments, ok: bool = True):
    result = runner.invoke(app, [str(a) for a in arguments])
    if ok:
        assert result.exit_code == 0, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize(("optimizer", "power"), [("adam", 1.0), ("sgd", 2.0)])
def test_refine_writes_and_prints_the_schedule(log, tmp_path, optimizer: str, power: float) -> None:
    out = tmp_path / "sched.json"
    result = invoke("refine", log, "--optimizer", optimizer, "--tau", "0.05", "--out", out, "--json")
    expected = refine_schedule(NORMS, power=power, tau=0.05)
    document = json.loads(result.stdout)
    np.testing.assert_array_equal(document["factors"], expected.factors)
    saved = RefinedSchedule.load(out)
    assert saved.digest == expected.digest
    assert (saved.power, saved.tau) == (power, 0.05)


def test_refine_in_words(log, tmp_path) -> None:
    text = invoke("refine", log, "--steps", 500, "--out", tmp_path / "s.json").stdout
    schedule = refine_schedule(NORMS, power=1.0, steps=500)
    assert f"{schedule.warmup_fraction:.1%}" in text
    assert "500 steps, refined" in text
    assert "extrapolated" in text
    assert len(RefinedSchedule.load(tmp_path / "s.json")) == 500


def test_degenerate_norms_are_said_on_stderr(tmp_path) -> None:
    path = tmp_path / "n.json"
    path.write_text(json.dumps(np.geomspace(1, 1e-4, 100).tolist()))
    result = invoke("refine", path, "--optimizer", "sgd")
    assert "interpolates" in result.stderr
    assert "fallback" in result.stdout
    assert json.loads(invoke("refine", path, "--json").stdout)["fell_back"]
    assert "refined" in invoke("refine", path, "--max-peak", "1").stdout


@pytest.mark.parametrize(("name", "magic"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_plot(log, tmp_path, name: str, magic: bytes) -> None:
    invoke("plot", log, "--out", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["norms.csv", name]


def test_bound_ranks_every_shape(log) -> None:
    document = json.loads(invoke("bound", log, "--json").stdout)
    rows = {r["schedule"]: r for r in document["schedules"]}
    assert set(rows) == {*SHAPES, "refined"}
    values = [r["bound"] for r in document["schedules"]]
    assert values == sorted(values)
    assert rows["refined"]["bound"] == pytest.approx(refine_schedule(NORMS).bound(NORMS))
    # Large early norms: even a flat rate, small throughout, has a lower bound than starting at full rate.
    assert rows["refined"]["bound"] < rows["flat"]["bound"] < rows["linear"]["bound"]
    assert "refined" in invoke("bound", log).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("refine", "{log}", "--tau", "2"), "tau"),
        (("refine", "{log}", "--steps", "1"), "steps"),
        (("refine", "{log}", "--key", "nope"), "no column 'nope'"),
        (("refine", "{tmp}/nothing.csv"), "no such file"),
        (("refine", "{tmp}/bad.csv"), "line 3"),
        (("refine", "{log}", "--out", "{tmp}/no/such/folder.json"), "cannot be written"),
        (("plot", "{log}", "--out", "{tmp}/p.gif"), ".png or .svg"),
        (("plot", "{tmp}/nothing.csv"), "no such file"),
        (("bound", "{tmp}/zero.csv"), "all gradient norms are 0"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(log, tmp_path, arguments, says: str) -> None:
    (tmp_path / "bad.csv").write_text("step,grad_norm\n0,1\n1,x\n")
    (tmp_path / "zero.csv").write_text("step,grad_norm\n0,0\n1,0\n2,0\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    result = invoke(*(a.format(log=log, tmp=tmp_path) for a in arguments), ok=False)
    assert isinstance(result.exception, UsageError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
