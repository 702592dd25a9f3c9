"""Tokenized examples, held flat in memory, with packing, cutting and counting of labels."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mpsdiag.errors import BadInput
from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.inputs.texts import texts_of

_BATCH: Final = 512
PROMPT_COLUMN: Final = "prompt"
COMPLETION_COLUMN: Final = "completion"


class Examples(Dataset[dict[str, list[int]]]):
    """Token ids with labels, in 5 bytes for each token; lists of Python integers take tens of bytes.

    Each item is a dictionary of lists: `input_ids`, `attention_mask`, and `labels` with -100 where none counts.
    """

    def __init__(self, ids: array[int], labelled: bytearray, ends: Sequence[int]) -> None:
        self._ids = ids
        self._labelled = labelled
        self._bounds = [0, *ends]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        index = range(len(self))[index]
        part = slice(self._bounds[index], self._bounds[index + 1])
        ids = self._ids[part].tolist()
        counted = zip(ids, self._labelled[part], strict=True)
        labels = [token if counts else IGNORED_LABEL for token, counts in counted]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    @property
    def tokens(self) -> int:
        """Number of tokens of all examples."""
        return self._bounds[-1] - self._bounds[0]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((end - start for start, end in itertools.pairwise(self._bounds)), default=0)

    @property
    def greatest(self) -> int:
        """The largest token id, over all tokens shared with other examples."""
        return max(self._ids, default=0)

    def without_label(self) -> int:
        """Number of examples with no label that counts; the first token of an example is never predicted."""
        bounds = itertools.pairwise(self._bounds)
        return sum(1 not in self._labelled[start + 1 : end] for start, end in bounds)

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` up to `stop`, sharing the tokens."""
        found = Examples(self._ids, self._labelled, [])
        found._bounds = self._bounds[start : stop + 1]
        return found

    def packed(self, length: int) -> Examples:
        """The same tokens, one text after the other, cut into examples of `length` without regard to the texts.

        The rest at the end is dropped, unless there is nothing else.
        """
        count = self.tokens // length
        ends = [length * (index + 1) for index in range(count)] or [self.tokens]
        return Examples(self._ids[: ends[-1]], self._labelled[: ends[-1]], ends)


def tokenize(
    records: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dataset: str,
    max_length: int | None,
    text_column: str | None = None,
    completions: bool = False,
    limit: int | None = None,
) -> Examples:
    """Tokenize the rows of a dataset. Each example ends with the end-of-text token, if there is one and it fits.

    Examples are cut to `max_length` tokens unless it is None, for packing. With `completions`, rows with the
    columns `prompt` and `completion` are labelled on the completion only. `dataset` is the name used in messages.
    """
    rows = iter(records)
    first = next(rows, None)
    if first is None:
        raise BadInput(f"The dataset '{dataset}' has no rows. Give one with at least one text.")
    rows = itertools.chain([first], rows)
    paired = completions and text_column is None and {PROMPT_COLUMN, COMPLETION_COLUMN} <= set(first)
    pairs = _pairs(rows) if paired else ((None, text) for text in texts_of(rows, dataset, text_column))
    ids, labelled, ends = array("i"), bytearray(), []
    for prompt, completion in _tokenized(itertools.islice(pairs, limit), tokenizer):
        tokens = [*prompt, *completion]
        ids.extend(tokens[:max_length])
        labelled.extend(([0] * len(prompt) + [1] * len(completion))[:max_length])
        ends.append(len(ids))
    if not ends:
        raise BadInput(f"The dataset '{dataset}' holds no text. Give one with at least one line that is not blank.")
    return Examples(ids, labelled, ends)


def _pairs(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str | None, str]]:
    for row in rows:
        prompt, completion = row.get(PROMPT_COLUMN), row.get(COMPLETION_COLUMN)
        if isinstance(prompt, str) and isinstance(completion, str):
            yield prompt, completion


def _tokenized(
    pairs: Iterator[tuple[str | None, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of prompt (empty if there is none) and completion, a batch of texts at a time."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    while batch := list(itertools.islice(pairs, _BATCH)):
        prompted = batch[0][0] is not None
        prompts = _ids(tokenizer, [prompt or "" for prompt, _ in batch]) if prompted else [[] for _ in batch]
        answers = _ids(tokenizer, [completion for _, completion in batch], special=not prompted)
        for prompt, answer in zip(prompts, answers, strict=True):
            # A prompt must not be closed by the tokenizer, and an answer only once.
            opened = prompt[:-1] if end and prompt[-1:] == end else prompt
            yield opened, answer if answer[-1:] == end else [*answer, *end]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool = True) -> list[list[int]]:
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    return list(tokenizer(texts, add_special_tokens=special, **options)["input_ids"])
