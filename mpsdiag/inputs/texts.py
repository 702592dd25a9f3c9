"""From the name of a dataset to texts, and from texts to token ids."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.errors import BadInput, nearest
from mpsdiag.inputs.files import Rows, Splits, open_local
from mpsdiag.inputs.names import classify, explain_missing, offline_if_unreachable
from mpsdiag.serialization import readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SYNTHETIC_LINES: Final = 256
_TEXT_COLUMNS: Final = ("text", "content", "sentence", "document", "body")
_SUBJECTS: Final = ("the lamp", "a heron", "the second engine", "my neighbour", "an old map", "the river", "she", "he")
_VERBS: Final = ("carries", "forgets", "measures", "repairs", "follows", "paints", "counts", "answers")
_OBJECTS: Final = (
    "the harbour",
    "a broken clock",
    "seven letters",
    "the northern road",
    "every window",
    "salt",
    "rain",
)
_LINKS: Final = ("while", "because", "and then", "although", "until", "before")


def open_splits(dataset: str, *, config: str | None = None, seed: int = 0, lines: int = _SYNTHETIC_LINES) -> Splits:
    """Open a dataset; files are inspected now and read when their rows are iterated.

    A dataset is `synthetic` (`lines` lines, by `seed`); a local `.txt` (one text a line), `.jsonl`, `.json`, `.csv`,
    `.tsv` or `.parquet` file; a folder of `.txt` files, or one that `datasets` saved; or a hub name, whose
    configuration (such as `wikitext-2-raw-v1`) is `config`.

    Raises:
        BadInput: The dataset is missing, empty, binary or unreadable, or there is no network; a bad row of a file
            raises it when the row is reached.
    """
    kind = classify("dataset", dataset)
    if kind == "builtin":
        texts = {name: synthetic_texts(lines, seed=seed, split=name) for name in ("train", "validation")}
        return {name: [{"text": text} for text in found] for name, found in texts.items()}
    if kind == "local":
        return open_local(dataset)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with offline_if_unreachable("dataset", dataset):
            return dict(load_dataset(dataset, config))
    except (OSError, ValueError, DatasetsError) as problem:
        raise BadInput(explain_missing("dataset", dataset, problem)) from problem


def load_texts(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    limit: int | None = None,
    text_column: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Load at most `limit` texts. Blank lines, and headings (` = Title = `) of plain text files, are dropped.

    `dataset`, `config` and `seed` are those of `open_splits`; a single file has only one split and ignores `split`.
    Without a `text_column`, it is found by name, or as the only column of strings. Raises BadInput as `open_splits`
    does, or if there is no such split or column, or no text.
    """
    splits = open_splits(dataset, config=config, seed=seed, lines=max(_SYNTHETIC_LINES, limit or 0))
    only_one = len(splits) == 1 and "train" in splits
    if split not in splits and not only_one:
        raise BadInput(f"The dataset '{dataset}' has no split '{split}'. {nearest(split, splits)}")
    texts: list[str] = []
    for text in texts_of(splits["train" if only_one else split], dataset, text_column):
        texts.append(text)
        if limit is not None and len(texts) >= limit:
            break
    if not texts:
        raise BadInput(f"The dataset '{dataset}' holds no text. Give a file with at least one line that is not blank.")
    return texts


def texts_of(records: Rows, dataset: str, text_column: str | None) -> Iterator[str]:
    """Iterate over the texts of rows; blank ones and headings are left out.

    Raises BadInput if the column does not exist, is ambiguous, or does not hold text.
    """
    column: str | None = None
    any_text = False
    for record in records:
        column = column or _text_column(dataset, record, text_column)
        text = record.get(column)
        if isinstance(text, str):
            any_text = True
            if text.strip() and not is_heading(text):
                yield readable(text.rstrip("\r\n"))  # A lone surrogate, which JSON can hold, breaks tokenizers.
        elif text is not None and not any_text:
            raise BadInput(
                f"The column '{column}' of the dataset '{dataset}' holds values of the type {type(text).__name__}, not "
                f"text. {_text_columns(record)}"
            )


def _text_columns(record: Mapping[str, Any]) -> str:
    """What to do if the column does not hold text."""
    names = [name for name, value in record.items() if isinstance(value, str)]
    if not names:
        return "None of its columns does: write the texts into one of them, as strings."
    return f"Name the column with the texts 'text', or use mpsdiag train with --text_column: {', '.join(names)}."


def is_heading(text: str) -> bool:
    """Whether a line is a heading of a wikitext file: ` = Title = `, ` = = Section = = `."""
    return text.startswith(" =") and text.rstrip().endswith("=")


def _text_column(dataset: str, record: Mapping[str, Any], wanted: str | None) -> str:
    """Find the column that holds the text. Raises BadInput if the column does not exist or is ambiguous."""
    columns = list(record)
    if wanted is not None:
        if wanted not in columns:
            raise BadInput(f"The dataset '{dataset}' has no column '{wanted}'. {nearest(wanted, columns)}")
        return wanted
    for name in _TEXT_COLUMNS:
        if name in columns:
            return name
    strings = [name for name in columns if isinstance(record[name], str)]
    if len(strings) == 1:
        return strings[0]
    raise BadInput(
        f"The dataset '{dataset}' has no column 'text'. Name one with --text_column; it has: {', '.join(columns)}."
    )


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, list[int]]]:
    """Turn texts into `input_ids` and `attention_mask`, as lists, truncated to `max_length` tokens and not padded."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, return_token_type_ids=False)
    return [
        {"input_ids": list(ids), "attention_mask": list(mask)}
        for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]


def greatest_id(rows: Iterable[Mapping[str, list[int]]]) -> int:
    """The greatest token id of rows that `encode` gave."""
    return max((max(row["input_ids"], default=0) for row in rows), default=0)


def _clause(random_: random.Random) -> str:
    return f"{random_.choice(_SUBJECTS)} {random_.choice(_VERBS)} {random_.choice(_OBJECTS)}"


def _line(random_: random.Random) -> str:
    # Lengths spread over two orders of magnitude: 1 to 48 clauses, short ones often.
    clauses = min(48, 1 + int(random_.paretovariate(0.7)))
    parts = [_clause(random_)]
    for _ in range(clauses - 1):
        parts.append(random_.choice(_LINKS))
        parts.append(_clause(random_))
    return " ".join(parts).capitalize() + "."


def synthetic_texts(count: int = 256, *, seed: int = 0, split: str = "train") -> list[str]:
    """Make `count` lines of text; the same arguments give the same lines on every machine."""
    random_ = random.Random(f"mpsdiag:{split}:{seed}")
    return [_line(random_) for _ in range(count)]
