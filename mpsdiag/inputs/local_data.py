"""Rows of a dataset on this machine: a text, JSON Lines, CSV or Parquet file, or a folder of texts or of `datasets`."""

from __future__ import annotations

import codecs
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput
from mpsdiag.inputs.tables import csv_rows, parquet_rows

# Not of `mpsdiag.training`: that a file was taken for text has to be said in a check and a trace too.
logger = logging.getLogger("mpsdiag.data")

VALIDATION_SPLITS: Final = ("validation", "valid", "val", "dev", "eval", "test")
_PROBE_BYTES: Final = 8192
_JSON: Final = (".jsonl", ".ndjson", ".json")
_SEPARATORS: Final[Mapping[str, str]] = {".csv": ",", ".tsv": "\t"}
_TEXT: Final = ("", ".txt", ".text", ".md", ".raw", ".tokens")
_KINDS: Final = ".txt, .jsonl, .csv, .tsv or .parquet"
_ARCHIVES: Final[Mapping[bytes, str]] = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}


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
    return {"train": _file(path)}


def _file(path: Path) -> Iterator[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path)
    _refuse_binary(path)
    if suffix in _SEPARATORS:
        return csv_rows(path, _SEPARATORS[suffix])
    if suffix in _JSON:
        return _json_lines(path)
    if suffix not in _TEXT:
        _say_taken_for_text(path)
    return _plain_text(path)


@functools.cache  # A check opens its data once for every fix that it tries.
def _say_taken_for_text(path: Path) -> None:
    logger.warning(
        "'%s' is read as plain text, one text a line: '%s' is no kind of data known here (%s).",
        path,
        path.suffix,
        _KINDS,
    )


def _refuse_binary(path: Path) -> None:
    """Look at the beginning of a file, so that a picture or an archive is refused before anything is built."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_PROBE_BYTES)
    except OSError as problem:
        raise BadInput(f"Cannot read '{path}': {problem.strerror}. Give a file you may read.") from problem
    if not beginning:
        raise BadInput(f"The file '{path}' is empty. Give a file with at least one line of text.")
    for magic, kind in _ARCHIVES.items():
        if beginning.startswith(magic):
            raise BadInput(
                f"The file '{path}' is a {kind} archive. Unpack it, and give the {_KINDS} file in it."
            )
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"The file '{path}' is text in UTF-16. Convert it to UTF-8.")
    if b"\0" in beginning or beginning.startswith(b"%PDF-"):
        raise BadInput(f"The file '{path}' is binary, not text. Give a {_KINDS} file.")


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


def _saved_folder(path: Path) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _folder_of_files(path)
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as problem:
        raise BadInput(
            f"The dataset folder '{path}' cannot be read: it is damaged. Save it again."
        ) from problem
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _folder_of_files(path: Path) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """The .txt files of a folder: its splits where they are called so (train.txt, valid.txt), all together if not."""
    texts = sorted(file for file in path.glob("*.txt") if file.is_file())
    if not texts:
        others = (
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in (*_JSON, *_SEPARATORS, ".parquet")
        )
        first = next(others, None)
        hint = "a file" if first is None else f"one of its files, such as '{first}'"
        raise BadInput(
            f"The folder '{path}' is not a dataset that `datasets` saved (no state.json or dataset_dict.json in it), "
            f"and holds no .txt files. Give {hint}, or a folder that save_to_disk wrote."
        )
    for file in texts:
        _refuse_binary(file)
    names = [file.stem for file in texts]
    if "train" in names and all(name in ("train", *VALIDATION_SPLITS) for name in names):
        return {file.stem: _plain_text(file) for file in texts}
    return {"train": chain.from_iterable(map(_plain_text, texts))}
