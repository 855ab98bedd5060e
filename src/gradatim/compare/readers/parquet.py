"""Parquet as a stream of batches of numbers and strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.text import check_file

BATCH_ROWS = 16_384
MARK = b"PAR1"


class ParquetFile:
    """A Parquet file whose columns are numbers, booleans, dates or strings."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        self.path = check_file(path)
        try:
            schema = parquet.read_schema(self.path)
            self.names = tuple(schema.names)
            self._types = {name: schema.field(i).type for i, name in enumerate(schema.names)}
        except Exception as error:
            raise self._broken(error) from None
        twice = next((n for i, n in enumerate(self.names) if n in self.names[:i]), None)
        if twice is not None:
            raise DataError(f"has two columns {quoted(twice)}", "rename one", file=self.path)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns as float64 or string arrays; NaN becomes missing."""
        casts = [self._target_type(name) for name in columns]
        # A corrupt file may fail anywhere in the decoder, with more kinds of errors than Arrow's own.
        try:
            file = parquet.ParquetFile(self.path, pre_buffer=False)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
                arrays = [_cast(batch.column(name), to) for name, to in zip(columns, casts, strict=True)]
                table = pa.RecordBatch.from_arrays(arrays, names=list(columns))
                table.validate(full=True)
                yield table
        except DataError:
            raise
        except Exception as error:
            raise self._broken(error) from None

    def check_quotes(self) -> None:
        """Parquet has no quotation marks to forget."""

    def line_of(self, row: int) -> int:
        """Rows are counted from 1, as lines are."""
        return row + 1

    def _target_type(self, name: str) -> pa.DataType:
        kind = self._types[name]
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        number = (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_temporal(kind)
            or pa.types.is_null(kind)
        )
        if not number or pa.types.is_interval(kind):
            raise DataError(
                f"column {quoted(name)} holds {kind}, not numbers or strings",
                f"leave it out with --drop {quoted(name)}",
                file=self.path,
            )
        return pa.float64()

    def _broken(self, error: Exception) -> DataError:
        with self.path.open("rb") as stream:
            head = stream.read(4)
        if head != MARK:
            return DataError(
                "is no Parquet file", "give a Parquet file, or rename it to .csv", file=self.path
            )
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DataError(f"is a broken Parquet file ({text})", "write it again", file=self.path)


def _cast(array: pa.Array, to: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if to == pa.string():
        return array.cast(to)
    if pa.types.is_temporal(array.type):
        # Dates and times as the integers behind them; models see them standardised or in order.
        array = array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64())
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    array = array.cast(to, safe=False)
    return pc.if_else(pc.is_nan(array), pa.scalar(None, to), array)
