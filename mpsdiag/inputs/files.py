"""Rows of a dataset on this machine: a text, JSON Lines, CSV or Parquet file, or a folder of texts or of `datasets`."""

import codecs
import functools
import glob
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput, file_errors, first_line
from mpsdiag.quiet import held_back
from mpsdiag.serialization import read_file

# Not of `mpsdiag.training`: check and trace show this warning too.
logger = logging.getLogger("mpsdiag.data")

Rows = Iterable[Mapping[str, Any]]
Splits = Mapping[str, Rows]
"""Rows by split. A single file has only the split `train`, and can be gone through once."""

VALIDATION_SPLITS: Final = ("validation", "valid", "val", "dev", "eval", "test")
_PROBE_BYTES: Final = 8192
# How `datasets` reads a file, by its ending: the reader and its options.
_TEXT: Final[tuple[str, dict[str, Any]]] = ("text", {"encoding": "utf-8-sig"})
_JSON: Final[tuple[str, dict[str, Any]]] = ("json", {})
_TABLE: Final[dict[str, Any]] = {"encoding": "utf-8-sig", "keep_default_na": False}
_READERS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    **dict.fromkeys(("", ".txt", ".text", ".md", ".raw", ".tokens"), _TEXT),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _JSON),
    ".csv": ("csv", _TABLE),
    ".tsv": ("csv", {**_TABLE, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}
_BAD: Final[Mapping[str, str]] = {
    "text": "cannot be read: {}. Convert it to UTF-8 text, one text a line",
    "json": "is not JSON Lines: {}. Write one JSON object a line, with values of one type for each key",
    "csv": "cannot be read as a table: {}. Its first line must name the columns, and every row must have a field for "
    "each; put text with separators or line breaks in quotes",
    "parquet": "is not a Parquet file that can be read. Write it again",
}
_KINDS: Final = ".txt, .jsonl, .csv, .tsv or .parquet"
_ARCHIVES: Final[Mapping[bytes, str]] = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}


def open_local(dataset: str) -> Splits:
    """Open a file or folder; the rows of a file are read one by one, never all at once.

    Raises BadInput, now or at the bad row, if it is empty, binary, unreadable or of an unknown kind.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _saved_folder(path)
    _refuse(path)
    if path.suffix.lower() not in _READERS:
        _warn_taken_for_text(path)
    return {"train": _rows([path])}


def _rows(paths: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    """The rows of files of one kind, in order."""
    kind, options = _READERS.get(paths[0].suffix.lower(), _TEXT)

    def read() -> Iterator[Mapping[str, Any]]:
        from datasets import load_dataset

        names = [glob.escape(str(path)) for path in paths]
        # Streaming caches nothing but a lock; the cache folder of the user may not be writable.
        with tempfile.TemporaryDirectory(prefix="mpsdiag-") as scratch:
            found = load_dataset(kind, data_files=names, split="train", streaming=True, cache_dir=scratch, **options)
        yield from found

    rows = read()
    while (row := _next(rows, paths[0], kind)) is not None:
        yield row


def _next(rows: Iterator[Mapping[str, Any]], path: Path, kind: str) -> Mapping[str, Any] | None:
    """The next row; a problem of the file is one sentence, without the log of `datasets`."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        with held_back("datasets"):
            return next(rows, None)
    except UnicodeDecodeError as problem:
        raise BadInput(f"The file '{path}' is binary or not UTF-8 text. Convert it to UTF-8.") from problem
    except (OSError, ValueError, ArrowException, DatasetsError) as problem:
        raise BadInput(f"The file '{path}' {_BAD[kind].format(first_line(problem))}.") from problem


@functools.cache  # A check opens its data once for every fix that it tries.
def _warn_taken_for_text(path: Path) -> None:
    logger.warning(
        "'%s' is read as plain text, one text a line: '%s' is not a known kind of data (%s).", path, path.suffix, _KINDS
    )


def _refuse(path: Path) -> None:
    """Inspect the beginning of a file, so that a pipe, a picture or an archive is refused before anything is built."""
    with file_errors(f"Cannot read '{path}'", "Give a file you may read."):
        if path.is_fifo():  # It gives its text only once.
            raise BadInput(f"'{path}' is a pipe, not a file. Write its text into a file first.")
        beginning = read_file(path, _PROBE_BYTES)
    if not beginning:
        raise BadInput(f"The file '{path}' is empty. Give a file with at least one line of text.")
    for magic, kind in _ARCHIVES.items():
        if beginning.startswith(magic):
            raise BadInput(f"The file '{path}' is a {kind} archive. Unpack it, and give the {_KINDS} file in it.")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"The file '{path}' is text in UTF-16. Convert it to UTF-8.")
    if path.suffix.lower() != ".parquet" and (b"\0" in beginning or beginning.startswith(b"%PDF-")):
        raise BadInput(f"The file '{path}' is binary, not text. Give a {_KINDS} file.")


def _saved_folder(path: Path) -> Splits:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _folder_of_files(path)
    from datasets import DatasetDict, load_from_disk
    from pyarrow import ArrowException

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ArrowException) as problem:
        raise BadInput(f"The dataset folder '{path}' cannot be read: it is damaged. Save it again.") from problem
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _folder_of_files(path: Path) -> Splits:
    """The .txt files of a folder: one split each where they are named so (train.txt, valid.txt), otherwise together."""
    texts = sorted(file for file in path.glob("*.txt") if file.is_file())
    if not texts:
        others = (file for file in sorted(path.iterdir()) if file.suffix.lower() in _READERS and file.suffix)
        first = next(others, None)
        hint = "a file" if first is None else f"one of its files, such as '{first}'"
        raise BadInput(
            f"The folder '{path}' is not a dataset that `datasets` saved (no state.json or dataset_dict.json in it), "
            f"and holds no .txt files. Give {hint}, or a folder that save_to_disk wrote."
        )
    for file in texts:
        _refuse(file)
    names = [file.stem for file in texts]
    if "train" in names and all(name in ("train", *VALIDATION_SPLITS) for name in names):
        return {file.stem: _rows([file]) for file in texts}
    return {"train": _rows(texts)}
