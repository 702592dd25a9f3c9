"""From the name of a dataset to texts, and from texts to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.errors import BadInput, nearest
from mpsdiag.training.sources import classify
from mpsdiag.training.synthetic import synthetic_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "load_records", "load_texts", "synthetic_texts", "text_column_of"]

Record = Mapping[str, Any]
_SYNTHETIC_LINES: Final = 256
_TEXT_COLUMNS: Final = ("text", "content", "sentence", "document", "body")


def load_texts(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    limit: int | None = None,
    text_column: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Load texts. Blank lines, and headings (` = Title = `) of plain text files, are dropped.

    Args:
        dataset: `synthetic`; a local `.txt` (one text a line), `.jsonl`, `.json` or `.parquet` file; a folder that
            `datasets` saved; or a hub name.
        config: Configuration of a hub dataset, such as `wikitext-2-raw-v1`.
        split: Which split; a single file has only one and ignores this.
        limit: At most this many texts; all if None.
        text_column: Column of the text; found by name, or as the only column of strings, if None.
        seed: Seed of synthetic text.

    Raises:
        BadInput: The dataset is missing, empty, binary or unreadable; an unknown split or column; no network.
    """
    records = load_records(dataset, config=config, split=split, seed=seed)
    column: str | None = None
    texts: list[str] = []
    for record in records:
        column = column or text_column_of(dataset, record, text_column)
        text = record.get(column)
        if isinstance(text, str) and text.strip() and not is_heading(text):
            texts.append(text.rstrip("\r\n"))
        if limit is not None and len(texts) >= limit:
            break
    if not texts:
        raise BadInput(
            f"The dataset '{dataset}' holds no text. Give a file with at least one line that is not blank."
        )
    return texts


def load_records(
    dataset: str, *, config: str | None = None, split: str = "train", seed: int = 0
) -> Iterator[Record]:
    """Go through the rows of a dataset, each a mapping from column to value; see `load_texts`.

    Raises:
        BadInput: As `load_texts`; for files, when the bad row is reached.
    """
    kind = classify("dataset", dataset)
    if kind == "builtin":
        return iter([{"text": text} for text in synthetic_texts(_SYNTHETIC_LINES, seed=seed, split=split)])
    if kind == "local":
        from mpsdiag.training.local_data import read_local

        return read_local(dataset, split)
    from mpsdiag.training.hub_data import read_hub

    return read_hub(dataset, config, split)


def is_heading(text: str) -> bool:
    """Say whether a line is a heading of a wikitext file: ` = Title = `, ` = = Section = = `."""
    stripped = text.strip()
    return text.startswith(" =") and stripped.endswith("=")


def text_column_of(dataset: str, record: Record, wanted: str | None) -> str:
    """Find the column that holds the text.

    Args:
        dataset: Its name, for the sentence.
        record: One row.
        wanted: The column the user asked for, if any.

    Raises:
        BadInput: There is no such column, or it cannot be told which is meant.
    """
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


def encode(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, list[int]]]:
    """Turn texts into token ids, truncated to `max_length` tokens and not padded.

    Args:
        texts: The texts.
        tokenizer: Any tokenizer of transformers.
        max_length: Longest example, in tokens, special tokens included.

    Returns:
        One dictionary a text with `input_ids` and `attention_mask`, as lists.
    """
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=False, return_token_type_ids=False
    )
    return [
        {"input_ids": list(ids), "attention_mask": list(mask)}
        for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]
