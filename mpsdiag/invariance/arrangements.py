"""The same sequences alone and in padded batches: the input of the model in each arrangement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

Example = dict[str, Tensor]
"""One sequence without padding: tensors with positions first, others in the form for one sequence."""

EXTRA: Final = 5
"""How many tokens longer the neighbour is, and how much padding is added if all sequences have equal length."""
SAMPLE: Final = 4
"""How many sequences are compared."""
PADDED: Final = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs that are padded together. Inputs of a decoder have their own lengths."""
PICTURES: Final = ("pixel", "image")
"""How the names of inputs begin that hold the pictures of all sequences, one after the other."""


@dataclass(frozen=True)
class Arrangement:
    """A batch, and the number of the example in its row 0, row 1 ...; rows behind those are not compared."""

    name: str
    batch: dict[str, Tensor]
    rows: tuple[int, ...]
    counts: bool = True
    """Whether it counts for the verdict; the others are only shown."""
    generates: bool = False
    """Tokens are generated from it; compared are those."""


def examples_of(
    batch: Mapping[str, Any], *, limit: int = SAMPLE, longest: int | None = None, picture: int = -1
) -> list[Example]:
    """Take a batch apart into its sequences, without their padding: the `limit` shortest and longest of them.

    `batch` has `input_ids` and, where there is padding, `attention_mask`, (sequences, positions); others with one entry
    a sequence; and pictures. Each sequence is cut to `longest` tokens. `picture` is the id that stands for pictures: by
    how often it does, a sequence has its share of them.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    order = sorted((row for row in range(len(ids)) if kept[row].any()), key=lambda row: int(kept[row].sum()))
    chosen = order if len(order) <= limit else [*order[: limit // 2], *order[limit // 2 - limit :]]
    tensors = {name: tensor for name, tensor in batch.items() if isinstance(tensor, Tensor) and tensor.dim()}
    pictures = {
        name: torch.split(tensor, shares)
        for name, tensor in tensors.items()
        if name.startswith(PICTURES) and sum(shares := _shares(ids == picture, len(tensor))) == len(tensor)
    }
    found = []
    for row in sorted(chosen):
        example = {
            name: tensor[row][kept[row]][:longest] if name in PADDED else tensor[row]
            for name, tensor in tensors.items()
            if len(tensor) == len(ids) and name != "position_ids" and not name.startswith(PICTURES)
        }
        example |= {name: parts[row] for name, parts in pictures.items() if len(parts[row])}
        example["attention_mask"] = torch.ones_like(example["input_ids"])
        found.append(example)
    return found


def _shares(stands: Tensor, entries: int) -> list[int]:
    """How many of the entries of all pictures belong to each sequence: by its tokens for pictures, or one each."""
    total = int(stands.sum())
    return [int(count) * entries // total for count in stands.sum(1)] if total else [1] * len(stands)


def alone(examples: Sequence[Example]) -> list[Arrangement]:
    """Each sequence by itself, without padding."""
    return [Arrangement("alone", joined([example]), (row,)) for row, example in enumerate(examples)]


def arrangements(
    examples: Sequence[Example], *, pad_id: int, padding_side: str, picture: int = -1
) -> Iterator[Arrangement]:
    """The padded batches, and twins; of `left` and `right`, the side that is not in use is shown and does not count.

    `pad_id` fills up; `picture` is the id that stands for pictures, which the scrambled pads may not hold.
    """
    rows = tuple(range(len(examples)))
    lengths = [len(example["input_ids"]) for example in examples]
    length = max(lengths) + (EXTRA if min(lengths) == max(lengths) else 0)
    for side in ("left", "right"):
        padded = [pad(example, length, side, pad_id) for example in examples]
        yield Arrangement(side, joined(padded), rows, counts=side == padding_side)
        if side == padding_side:
            yield scrambled(Arrangement("scrambled_pads", joined(padded), rows, counts=False), picture)
    most = lengths.index(max(lengths))
    company = [examples[lengths.index(min(lengths))], _longer(examples[most])]
    padded = [pad(example, lengths[most] + EXTRA, padding_side, pad_id) for example in company]
    yield Arrangement("neighbour", joined(padded), (lengths.index(min(lengths)),))
    yield Arrangement("twins", joined([examples[most]] * 2), (most, most))


def companions(examples: Sequence[Example]) -> tuple[list[Example], Arrangement]:
    """The sequences cut to the length of the shortest, and a batch of them: together, without padding."""
    shortest = min(len(example["input_ids"]) for example in examples)
    cut = [
        {name: t[:shortest] if name in PADDED else t for name, t in example.items() if not name.startswith(PICTURES)}
        for example in examples
    ]
    return cut, Arrangement("companions", joined(cut), tuple(range(len(cut))))


def pad(example: Example, length: int, side: str, pad_id: int) -> Example:
    """A sequence, padded to a length on one side; the attention mask is 0 there."""
    missing = length - len(example["input_ids"])
    padded = dict(example)
    for name in PADDED:
        if name in example:
            tensor = example[name]
            filling = tensor.new_full((missing,), pad_id if name == "input_ids" else 0)
            padded[name] = torch.cat([filling, tensor] if side == "left" else [tensor, filling])
    return padded


def scrambled(arrangement: Arrangement, picture: int = -1) -> Arrangement:
    """The same batch with other tokens of its own under the mask, except those that stand for pictures."""
    ids, hidden = arrangement.batch["input_ids"], arrangement.batch["attention_mask"] == 0
    real = ids[~hidden & (ids != picture)]
    drawn = torch.randint(len(real), ids.shape, generator=torch.Generator().manual_seed(0)).to(ids.device)
    return replace(arrangement, batch={**arrangement.batch, "input_ids": torch.where(hidden, real[drawn], ids)})


def with_positions(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with position ids from its attention mask: each sequence's first real token is at 0."""
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def _longer(example: Example) -> Example:
    """The sequence with its last token repeated."""
    longer = dict(example)
    for name in PADDED:
        if name in example:
            longer[name] = torch.cat([example[name], example[name][-1:].expand(EXTRA)])
    return longer


def joined(examples: Sequence[Example]) -> dict[str, Tensor]:
    """A batch of sequences of one length, with what pictures some of them have."""
    names = dict.fromkeys(name for example in examples for name in example)
    return {
        name: (torch.cat if name.startswith(PICTURES) else torch.stack)([e[name] for e in examples if name in e])
        for name in names
    }
