"""Rows of tables in files, CSV and Parquet, read a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput, first_line

_BLOCK_BYTES: Final = 16 * 2**20
"""Read at once; no row may be longer."""


def csv_rows(path: Path, separator: str) -> Iterator[dict[str, Any]]:
    """Go through the rows of a CSV file whose first line names the columns; a quoted field may hold line breaks.

    Args:
        path: In UTF-8.
        separator: Between fields.

    Raises:
        BadInput: A row has more or fewer fields than there are columns, or is not UTF-8; when it is reached.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        # Opened here: a name that the locale could not decode is none that pyarrow could open.
        with path.open("rb") as stream:
            table = csv.open_csv(
                stream,
                read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            )
            if any(pa.types.is_binary(kind) for kind in table.schema.types):
                raise BadInput(f"The file '{path}' is binary or not UTF-8 text. Convert it to UTF-8.")
            for batch in table:
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as problem:
        raise BadInput(
            f"The file '{path}' cannot be read as a table: {first_line(problem)}. Its first line has to name the "
            "columns, and every row has to have a field for each; text with separators or line breaks goes in quotes."
        ) from problem


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Go through the rows of a Parquet file.

    Raises:
        BadInput: It is damaged, or something else; when the first row is asked for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as problem:
        raise BadInput(
            f"The file '{path}' is not a Parquet file that can be read. Write it again."
        ) from problem
