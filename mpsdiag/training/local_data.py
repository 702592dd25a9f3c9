"""Rows of a dataset on this machine: a plain text, JSON Lines or Parquet file, or a folder that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput

_PROBE_BYTES: Final = 8192


def open_local(dataset: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Open a file or folder; the rows of a file are read one after the other, never all at once.

    Args:
        dataset: Path that exists.

    Returns:
        Rows by split; a single file has the split `train`.

    Raises:
        BadInput: Empty, binary, unreadable, or of an unknown kind; at once, or when the bad row is reached.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _saved_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return {"train": _parquet(path)}
    _refuse_binary(path)
    if suffix in {".jsonl", ".ndjson", ".json"}:
        return {"train": _json_lines(path)}
    return {"train": _plain_text(path)}


def _refuse_binary(path: Path) -> None:
    """Look at the beginning of a file, so that a picture or an archive is refused before anything is built."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_PROBE_BYTES)
    except OSError as problem:
        raise BadInput(f"Cannot read '{path}': {problem.strerror}. Give a file you may read.") from problem
    if not beginning:
        raise BadInput(f"The file '{path}' is empty. Give a file with at least one line of text.")
    if b"\0" in beginning:
        raise BadInput(f"The file '{path}' is binary, not text. Give a .txt, .jsonl or .parquet file.")


def _plain_text(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                yield {"text": line}
    except UnicodeDecodeError as problem:
        raise BadInput(f"The file '{path}' is binary or not UTF-8 text. Convert it to UTF-8.") from problem


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_plain_text(path), start=1):
        line = row["text"].strip()
        if not line:
            continue
        try:
            value = json.loads(line)
        except ValueError as problem:
            raise BadInput(
                f"Line {number} of '{path}' is not JSON: write one JSON object a line."
            ) from problem
        if not isinstance(value, dict):
            raise BadInput(f"Line {number} of '{path}' is not a JSON object: write one object a line.")
        yield value


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        for batch in table.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as problem:
        raise BadInput(
            f"The file '{path}' is not a Parquet file that can be read. Write it again."
        ) from problem


def _saved_folder(path: Path) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise BadInput(
            f"The folder '{path}' is not a dataset that `datasets` saved (no state.json or dataset_dict.json in it). "
            "Give a file, or a folder that save_to_disk wrote."
        )
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as problem:
        raise BadInput(
            f"The dataset folder '{path}' cannot be read: it is damaged. Save it again."
        ) from problem
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
