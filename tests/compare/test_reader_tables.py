"""Tables: what is read equals what pandas reads; what is wrong is refused with its line."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gradatim.compare.errors import DataError
from gradatim.compare.readers import delimited
from gradatim.compare.readers.reservoir import Reservoir, RowScores
from gradatim.compare.readers.table import read_table

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def frame(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "size": rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "colour": rng.choice(["red", "green", "a, b", 'say "x"', "two\nlines"], rows),
            "price": rng.normal(size=rows) * 10,
            "label": np.where(np.arange(rows) % 3 == 0, "yes", "no"),
        }
    )


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def table_text(rows: list[str], header: str = "a,b,y") -> str:
    return "\n".join([header, *rows]) + "\n"


def check_message(error: DataError) -> None:
    assert len(str(error).splitlines()) == 1
    assert "; " in str(error)
    str(error).encode("utf-8")


GOOD = [f"{i},{i % 4}.5,{'p' if i % 2 else 'q'}" for i in range(30)]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_equals_pandas(tmp_path, separator):
    expected = frame()
    expected.loc[3, "size"] = np.nan
    expected.loc[5, "colour"] = None
    path = tmp_path / "t.csv"
    expected.to_csv(path, index=False, sep=separator)
    data = read_table(path, "label")
    assert data.kind == "classification"
    assert data.numeric == ("size", "count", "price")
    assert data.categorical == ("colour",)
    np.testing.assert_array_equal(data.features["size"], expected["size"])
    np.testing.assert_array_equal(data.features["count"], expected["count"])
    assert data.features["colour"].isna().tolist() == expected["colour"].isna().tolist()
    assert data.features["colour"].dropna().tolist() == expected["colour"].dropna().tolist()
    assert data.target.tolist() == expected["label"].tolist()
    assert data.rows_seen == 60
    assert data.sampled == ""


def test_parquet_equals_csv(tmp_path):
    table = frame()
    table["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(60), unit="D")
    table["flag"] = np.arange(60) % 2 == 0
    table["kindness"] = table["colour"].astype("category")
    table.to_parquet(tmp_path / "t.parquet", index=False)
    table.drop(columns=["when"]).to_csv(tmp_path / "t.csv", index=False)
    a = read_table(tmp_path / "t.parquet", "price")
    b = read_table(tmp_path / "t.csv", "price")
    assert a.kind == b.kind == "regression"
    np.testing.assert_array_equal(a.target, b.target)
    for name in b.features:
        assert a.features[name].tolist() == b.features[name].tolist()
    assert a.categorical == b.categorical == ("colour", "label", "kindness")
    assert np.all(np.diff(a.features["when"]) > 0)


def test_sample_is_seeded_uniform_and_does_not_depend_on_batches(tmp_path):
    pd.DataFrame({"x": np.arange(40_000), "y": np.arange(40_000) * 0.5}).to_csv(
        tmp_path / "t.csv", index=False
    )
    one = read_table(tmp_path / "t.csv", "y", max_rows=500, seed=3)
    two = read_table(tmp_path / "t.csv", "y", max_rows=500, seed=3)
    other = read_table(tmp_path / "t.csv", "y", max_rows=500, seed=4)
    assert one.target.tolist() == two.target.tolist() != other.target.tolist()
    # The rule itself, written once more: rows with the smallest draws.
    expected = np.sort(np.argsort(np.random.default_rng(3).random(40_000))[:500])
    assert one.features["x"].tolist() == expected.tolist()
    assert one.sampled == "Measured on a seeded sample: 500 of 40,000 rows."


@given(
    st.integers(1, 20),
    st.lists(st.integers(0, 30), min_size=1, max_size=8),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_row_scores_equal_reservoir(size, batches, seed):
    reservoir: Reservoir[int] = Reservoir(size, seed)
    rows = RowScores(size, seed)
    kept, scores = np.empty(0, int), np.empty(0)
    for count in batches:
        first = rows.seen
        for i in range(count):
            reservoir.add(first + i)
        positions, score = rows.keep(count)
        kept, scores = np.append(kept, positions + first), np.append(scores, score)
        chosen = rows.cut(scores)
        kept, scores = kept[chosen], scores[chosen]
    assert kept.tolist() == reservoir.items()
    assert len(kept) == min(size, sum(batches))


BAD = {
    "empty": ("", None, "is empty"),
    "blank": ("\n\n \n", None, "only blank lines"),
    "header only": ("a,b,y\n", None, "no rows"),
    "missing column": ("a,b\n1,2\n", 1, 'has no column "y"'),
    "two of a name": ("a,a,y\n1,2,3\n", 1, "twice"),
    "few rows": (table_text(GOOD[:5]), None, "holds 5 rows"),
    "one class": (table_text([r.replace("p", "q") for r in GOOD]), None, 'the one class "q"'),
    "rare class": (table_text([*GOOD, "1,2,rare"]), 32, 'class "rare"'),
    "no target": (table_text([*GOOD[:7], "1,2,", *GOOD]), 9, "missing"),
    "nan target": (table_text([*GOOD[:7], "", "1,2,NaN", *GOOD]), 10, "missing"),
    "infinite target": (table_text([f"1,{i},{i}.5" for i in range(30)] + ["1,1,-Inf"]), 32, "infinite"),
    "word among numbers": (table_text([*GOOD, "1,two,p"]), 32, '"two"'),
    "infinite feature": (table_text([*GOOD[:3], "inf,1,p", *GOOD]), 5, 'column "a" is inf'),
    "huge feature": (table_text([*GOOD[:3], "1e200,1,p", *GOOD]), 5, 'column "a" is 1e+200'),
    "short line": (table_text([*GOOD[:4], "1,2", *GOOD]), 6, "has 2 fields where the header has 3"),
    "long line": (table_text([*GOOD[:4], "1,2,3,4", *GOOD]), 6, "has 4 fields"),
    "long after newline in quotes": (
        table_text(['"two\nlines",2,p', "1,2,3,4", *GOOD], "a,b,y"), 4, "has 4 fields",
    ),
    "open quote": (table_text([*GOOD, '1,"2,p', *GOOD]), 32, "never closed"),
    "latin-1": (table_text(GOOD).encode() + b"1,caf\xe9,p\n", 32, "not UTF-8"),
    "utf-16": (table_text(GOOD).encode("utf-16"), 1, "UTF-16"),
    "binary": (b"\x00\x01\x02,\x00\n", 1, "binary"),
    "only the target": ("y\n" + "p\nq\n" * 20, None, "no feature column"),
    "old line ends": (table_text(GOOD).replace("\n", "\r"), 1, "no header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_csv_names_file_line_and_fix(tmp_path, case):
    content, line, words = BAD[case]
    path = write(tmp_path / "data.csv", content)
    with pytest.raises(DataError) as caught:
        read_table(path, "y")
    error = caught.value
    assert error.line == line
    assert words in str(error)
    assert str(path) in str(error)
    assert (f", line {line}: " in str(error)) == (line is not None)
    assert len(str(error).splitlines()) == 1
    assert "; " in str(error)


def test_lines_are_counted_over_all_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK", 2**12)
    rows = [f"{i},{i % 7},{'p' if i % 2 else 'q'}" for i in range(6000)]
    for bad, words in (("1,2,", "missing"), ("1,two,p", '"two"'), ("1,2", "2 fields")):
        path = write(tmp_path / "t.csv", table_text([*rows[:5000], bad, *rows[5000:]]))
        with pytest.raises(DataError, match=words) as caught:
            read_table(path, "y")
        assert caught.value.line == 5002
    frame = pd.DataFrame({"a": np.arange(40_000.0), "y": np.arange(40_000.0)})
    frame.loc[30_000, "y"] = np.nan
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 30001"):
        read_table(tmp_path / "t.parquet", "y")


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_fine(tmp_path):
    text = "\n" + table_text([*GOOD[:5], "", *GOOD[5:]])
    path = write(tmp_path / "t.csv", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    data = read_table(path, "y")
    assert data.numeric == ("a", "b")
    assert data.features["a"].tolist() == list(range(30))


def test_options(tmp_path):
    path = write(tmp_path / "t.csv", table_text([*GOOD, "1,two,p"]))
    assert read_table(path, "y", categorical=["b"]).categorical == ("b",)
    assert read_table(path, "y", drop=["b"]).numeric == ("a",)
    with pytest.raises(DataError, match="--drop"):
        read_table(path, "y", drop=["zzz"])
    with pytest.raises(DataError, match="keep the target"):
        read_table(path, "y", drop=["y"])
    with pytest.raises(DataError, match="no number"):
        read_table(path, "y", drop=["b"], kind="regression")
    numbers = write(tmp_path / "n.csv", table_text([f"{i},{i},{i % 3}" for i in range(30)]))
    assert read_table(numbers, "y").kind == "classification"
    assert read_table(numbers, "y").target.tolist()[:3] == ["0", "1", "2"]
    assert read_table(numbers, "y", kind="regression").target.dtype == np.float64


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path, "y")
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv", "y")
    with pytest.raises(DataError):
        read_table("nul\0byte.csv", "y")
    with pytest.raises(DataError, match=r"not exist|cannot be opened"):
        read_table("x" * 5000, "y")
    if os.geteuid() != 0:
        locked = write(tmp_path / "locked.csv", table_text(GOOD))
        locked.chmod(0)
        with pytest.raises(DataError, match="may not be read"):
            read_table(locked, "y")


def test_bad_parquet(tmp_path):
    with pytest.raises(DataError, match="no Parquet file"):
        read_table(write(tmp_path / "a.parquet", table_text(GOOD)), "y")
    frame().to_parquet(tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(DataError, match="broken"):
        read_table(write(tmp_path / "c.parquet", whole[:-20]), "label")
    parquet.write_table(pa.table({"y": list(range(30)), "x": [[1]] * 30}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="--drop"):
        read_table(tmp_path / "d.parquet", "y")
    table = frame()
    table.loc[4, "price"] = np.nan
    table.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(DataError, match="row 5: target"):
        read_table(tmp_path / "e.parquet", "price")


@given(st.binary(max_size=300))
@FUZZ
def test_any_bytes_give_a_table_or_a_data_error(tmp_path, content):
    path = write(tmp_path / "t.csv", content)
    for target in ("y", content[:1].decode("latin-1")):
        try:
            read_table(path, target)
        except DataError as error:
            check_message(error)


CELL = st.one_of(
    st.sampled_from(["", "1", "2.5", "-3e4", "nan", "inf", "x", '"', '"a,b"', '"a\nb"', "true", "1_0", "é"]),
    st.text(max_size=5),
)


@given(st.lists(st.lists(CELL, min_size=2, max_size=4), min_size=18, max_size=40), st.sampled_from(",;\t|"))
@FUZZ
def test_any_cells_give_a_table_or_a_data_error(tmp_path, rows, separator):
    text = "\n".join(separator.join(row) for row in [["a", "b", "y"], *rows])
    path = write(tmp_path / "t.csv", text.encode("utf-8", "surrogatepass"))
    try:
        data = read_table(path, "y", max_rows=25)
    except DataError as error:
        check_message(error)
    else:
        assert len(data.features) == len(data.target) <= 25


@given(st.data())
@FUZZ
def test_flipped_bytes_of_parquet_give_a_table_or_a_data_error(tmp_path, data):
    path = tmp_path / "t.parquet"
    frame(40).to_parquet(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        read_table(path, "label")
    except DataError as error:
        check_message(error)


def peak_of(path: Path) -> int:
    """Peak of what the interpreter and Arrow hold while a file is read."""
    read_table(path, "y", max_rows=2000)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        read_table(path, "y", max_rows=2000)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def rows_file(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(0)
    for start in range(0, rows, 50_000):
        count = min(50_000, rows - start)
        table = pd.DataFrame(rng.normal(size=(count, 6)).round(6), columns=[*"abcde", "y"])
        table.to_csv(path, mode="a", header=start == 0, index=False)
    return path


def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch):
    # Arrow reads up to 32 blocks ahead; both files are longer than that.
    monkeypatch.setattr(delimited, "BLOCK", 2**16)
    small = rows_file(tmp_path / "s.csv", 150_000)
    large = rows_file(tmp_path / "l.csv", 450_000)
    assert peak_of(large) < 1.25 * peak_of(small)


@pytest.mark.slow
def test_memory_does_not_grow_with_millions_of_rows(tmp_path):
    small = rows_file(tmp_path / "s.csv", 1_500_000)
    large = rows_file(tmp_path / "l.csv", 4_500_000)
    assert peak_of(large) < 1.25 * peak_of(small)
