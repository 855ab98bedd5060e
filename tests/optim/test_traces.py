import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.optim import GradNormTrace, TraceError, read_trace


def write(tmp_path, name: str, content) -> str:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


LR_SCHEDULING = {
    "summary": {"final": 3.0},
    "config": {"lr": 1e-3},
    "name": "run",
    "history": {
        "train": {"iter": [100, 0, 50, 50], "train_lr": [1, 1, 1, 1], "grad_norm": [3.0, 1.0, 9.0, 2.0]},
        "val": {"iter": [0], "loss": [4.0]},
    },
}
TRAINER_STATE = {
    "best_metric": None,
    "log_history": [
        {"step": 0, "loss": 2.0, "grad_norm": 1.0},
        {"step": 50, "loss": 1.0, "grad_norm": 2.0},
        {"step": 50, "eval_loss": 1.0},
        {"step": 100, "loss": 0.9, "grad_norm": 3.0},
        {"step": 100, "train_runtime": 9.0},
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "step,grad_norm\n0,1\n50,2\n100,3\n"),
        ("sorted.csv", "grad_norm,other,step\n3,x,100\n\n1,y,0\n2,z,50\n"),
        ("bom.csv", "\ufeffstep,grad_norm\r\n0,1\r\n50,2\r\n100,3\r\n"),
        ("meta.csv", "step,value,min,max\n0,1,0,2\n50,2,1,3\n100,3,2,4\n"),
        ("gaps.csv", "step,grad_norm\n0,1\n25,\n50,2\n100,3\n"),
        ("a.tsv", "step\tgrad_norm\n0\t1\n50\t2\n100\t3\n"),
        ("a.json", LR_SCHEDULING),
        ("trainer_state.json", TRAINER_STATE),
        ("columns.json", {"step": [0, 50, 100], "grad_norm": [1, 2, 3]}),
        ("records.json", [{"step": s, "grad_norm": g} for s, g in ((0, 1), (50, 2), (100, 3))]),
        (
            "a.jsonl",
            '{"step": 0, "grad_norm": 1}\n{"loss": 3}\n\n{"step": 50, "grad_norm": 2}\n'
            '{"step": 100, "grad_norm": 3}\n',
        ),
    ],
)
def test_formats(tmp_path, name: str, content) -> None:
    trace = read_trace(write(tmp_path, name, content))
    assert trace.norms.tolist() == [1.0, 2.0, 3.0]
    assert trace.steps.tolist() == [0, 50, 100]


def test_logs_without_steps_count_from_zero(tmp_path) -> None:
    for name, content in (
        ("a.json", [3, 2.5, 1]),
        ("b.csv", "norm\n3\n2.5\n1\n"),
        ("c.json", {"norms": [3, 2.5, 1]}),
    ):
        trace = read_trace(write(tmp_path, name, content))
        assert trace.norms.tolist() == [3.0, 2.5, 1.0]
        assert trace.steps.tolist() == [0, 1, 2]


def test_of_entries_logged_twice_the_last_counts(tmp_path) -> None:
    trace = read_trace(write(tmp_path, "a.csv", "step,grad_norm\n0,1\n1,2\n1,7\n"))
    assert trace.norms.tolist() == [1.0, 7.0]


def test_key_and_norm_type(tmp_path) -> None:
    path = write(tmp_path, "a.csv", "step,l1,grad_norm_l1,grad_norm\n0,1,2,3\n1,4,5,6\n")
    assert read_trace(path).norms.tolist() == [3.0, 6.0]
    assert read_trace(path, key="l1", norm_type=1).norm_type == 1
    assert read_trace(path, key="grad_norm_l1").norm_type == 1
    assert read_trace(path, key="l1").norms.tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "step,grad_norm\n0,1\n1,oops\n", r"line 3: gradient norm 'oops' is not a number"),
        ("a.csv", "step,grad_norm\n0,1\n1,-2\n", "line 3: a gradient norm cannot be negative"),
        ("a.csv", "step,grad_norm\n0,1\n1,nan\n", "line 3: gradient norm is nan"),
        ("a.csv", "step,grad_norm\n0,1\n1,inf\n", "line 3: gradient norm is inf"),
        ("a.csv", "step,grad_norm\n0,1\n1.5,2\n", "line 3: step must be a whole number"),
        ("a.csv", "step,grad_norm\n0,1\n-1,2\n", "line 3: step must be"),
        ("a.csv", "step,grad_norm\n0,1\n1,2,3\n", "line 3: 3 fields, the header has 2"),
        ("a.csv", "step,loss\n0,1\n1,2\n", "no column of gradient norms among: 'step', 'loss'"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "step,grad_norm\n0,1\n", "at least 2 steps, got 1"),
        ("a.csv", 'step,grad_norm\n0,1\n"1,2\n', "line 3: not readable as CSV"),
        ("a.csv", b"step,grad_norm\n0,1\n1,\xff\n", "line 3: not UTF-8"),
        ("a.json", "{", "line 1: not JSON"),
        ("a.json", '[1,\n2,\n"x"]', "entry 3: gradient norm 'x' is not a number"),
        ("a.json", "[true, false]", "entry 1: gradient norm True is not a number"),
        ("a.json", "[1, null]", "entry 2"),
        ("a.json", "[" * 100_000, "too deep"),
        ("a.json", "[1" + "0" * 400 + ", 2]", "not a number"),
        ("a.json", "3", "holds int"),
        ("a.json", '{"step": [0, 1], "grad_norm": [1]}', "2 steps but 1 norms"),
        ("a.json", '{"loss": [1, 2]}', "no list of gradient norms"),
        ("a.json", '[{"grad_norm": 1}, 5]', "entry 2: expected an object"),
        ("a.jsonl", '{"grad_norm": 1}\n{"grad_norm": \n', "line 2: not JSON"),
        ("a.jsonl", '{"grad_norm": 1}\n{"grad_norm": [2]}\n', "line 2"),
        ("a.pkl", "x", "unknown ending '.pkl'"),
    ],
)
def test_errors_name_the_file_the_line_and_the_trouble(tmp_path, name: str, content, says: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(TraceError, match=says) as caught:
        read_trace(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_key(tmp_path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "nothing.csv")
    path = write(tmp_path, "a.csv", "step,grad_norm\n0,1\n1,2\n")
    with pytest.raises(TraceError, match="no column 'l1'; there are: 'step', 'grad_norm'"):
        read_trace(path, key="l1")


def test_size_is_bounded(tmp_path) -> None:
    path = write(tmp_path, "a.csv", "step,grad_norm\n" + "".join(f"{i},1\n" for i in range(100)))
    with pytest.raises(TraceError, match="more than the 100 allowed"):
        read_trace(path, max_bytes=100)
    with pytest.raises(TraceError, match="more than 50 entries"):
        read_trace(path, max_records=50)


@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "json", "jsonl"]))
@settings(deadline=None, max_examples=150)
def test_no_other_error_escapes(tmp_path_factory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(content)
    try:
        trace = read_trace(path)
    except TraceError:
        return
    assert len(trace) >= 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["step", "grad_norm", "history", "train", "log_history", "format"]), inner
        )
    ),
    max_leaves=12,
)


@given(json_values)
@settings(deadline=None, max_examples=150)
def test_no_other_error_escapes_from_any_json(tmp_path_factory, value) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz2.json"
    path.write_text(json.dumps(value))
    try:
        read_trace(path)
    except TraceError:
        return


def test_own_format_with_broken_description_is_refused(tmp_path) -> None:
    path = write(
        tmp_path,
        "a.json",
        {"format": "gradatim.grad-norms/1", "norm_type": 7, "norms": [1, 2], "steps": [0, 1]},
    )
    with pytest.raises(TraceError, match="norm_type"):
        read_trace(path)


class TestTensorBoard:
    def write(self, folder, tags) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            for tag in tags:
                for step, value in ((0, 1.0), (10, 2.0), (20, 3.5)):
                    writer.add_scalar(tag, value, step)

    def test_folder_and_file(self, tmp_path) -> None:
        self.write(tmp_path, ["train/loss", "train/grad_norm"])
        (file,) = (p for p in tmp_path.iterdir() if "tfevents" in p.name)
        for path in (tmp_path, file):
            trace = read_trace(path)
            assert trace.norms.tolist() == [1.0, 2.0, 3.5]
            assert trace.steps.tolist() == [0, 10, 20]

    def test_ambiguous_missing_and_named_tags(self, tmp_path) -> None:
        self.write(tmp_path, ["a/grad_norm", "b/grad_norm_l1"])
        with pytest.raises(TraceError, match="2 tags"):
            read_trace(tmp_path)
        with pytest.raises(TraceError, match="no tag 'x'"):
            read_trace(tmp_path, key="x")
        assert read_trace(tmp_path, key="b/grad_norm_l1").norm_type == 1

    def test_not_event_files(self, tmp_path) -> None:
        with pytest.raises(TraceError, match="without TensorBoard event files"):
            read_trace(tmp_path)
        write(tmp_path, "events.out.tfevents.1", b"garbage")
        with pytest.raises(TraceError, match="tfevents"):
            read_trace(tmp_path / "events.out.tfevents.1")


class TestTrace:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"norms": np.array([])}, "at least one"),
            ({"norms": np.array([1.0, -1.0])}, "-1.0 at index 1"),
            ({"norms": np.ones(2), "steps": np.array([0])}, "steps"),
            ({"norms": np.ones(2), "steps": np.array([1, 1])}, "increase"),
            ({"norms": np.ones(2), "norm_type": 3}, "norm_type"),
        ],
    )
    def test_bad_traces(self, arguments, says: str) -> None:
        from jaxtyping import TypeCheckError

        with pytest.raises((ValueError, TypeCheckError), match=says):
            GradNormTrace(**arguments)

    def test_failed_writing_leaves_nothing(self, tmp_path) -> None:
        with pytest.raises(OSError, match="No such file"):
            GradNormTrace(np.ones(2)).save(tmp_path / "missing" / "a.json")
        assert list(tmp_path.iterdir()) == []
