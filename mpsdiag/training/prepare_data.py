"""The training and validation examples of a run, the split they come from, and warnings about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mpsdiag.errors import BadInput
from mpsdiag.inputs.files import VALIDATION_SPLITS, Rows, Splits
from mpsdiag.inputs.tasks import Task
from mpsdiag.inputs.texts import greatest_id, open_splits, texts_of
from mpsdiag.training.command_line import DataArguments
from mpsdiag.training.examples import Examples, tokenize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Examples of a run; `train` is None if it only evaluates."""

    train: Examples | None
    evaluation: Examples | TaskRows

    @property
    def greatest(self) -> int:
        """The greatest token id of all examples."""
        return max(part.greatest for part in (self.train, self.evaluation) if part is not None)


def prepare_examples(
    data: DataArguments, tokenizer: PreTrainedTokenizerBase, *, max_length: int, mode: str, seed: int
) -> Prepared:
    """Load, tokenize, pack and split; refuses data without a label.

    The validation examples come from `--eval_dataset`, or from the validation split. Otherwise they are cut
    off the end of the training split, with a warning.
    """

    def examples(records: Rows, name: str, limit: int | None = None) -> Examples:
        found = tokenize(
            records,
            tokenizer,
            dataset=name,
            max_length=None if data.use_packing else max_length,
            text_column=data.text_column,
            completions=mode != "pretrain",
            limit=limit,
        )
        return found.packed(max_length) if data.use_packing else found

    splits = open_splits(data.dataset, config=data.dataset_config, seed=seed)
    train = None
    if mode != "evaluate":
        if "train" not in splits:
            raise BadInput(
                f"The dataset '{data.dataset}' has no split 'train', only {', '.join(splits)}. "
                "Use --mode evaluate, or another dataset."
            )
        train = examples(splits["train"], data.dataset, data.max_samples)
    if data.eval_dataset is not None:
        others = open_splits(data.eval_dataset, config=data.dataset_config, seed=seed)
        evaluation = examples(others[_validation_name(others) or _only(others)], data.eval_dataset)
    elif (name := _validation_name(splits)) is not None:
        evaluation = examples(splits[name], data.dataset)
    elif train is None:
        evaluation = examples(splits[_only(splits)], data.dataset)
    else:
        train, evaluation = _cut(train, data)
    for what, part in (("training", train), ("validation", evaluation)):
        if part is not None:
            _check_labels(part, what, max_length)
    return Prepared(train, evaluation)


class TaskRows(list[dict[str, Any]]):
    """Rows of a task to evaluate on, counted like `Examples`."""

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return sum(len(row["input_ids"]) for row in self)

    @property
    def greatest(self) -> int:
        """The greatest token id of all rows."""
        return greatest_id(self)


def rows_of_task(
    data: DataArguments, task: Task, processor: Any, model: Any, *, max_length: int, seed: int
) -> TaskRows:
    """The rows on which a model of any task is evaluated; classes come from the column `label`, if there is one.

    Raises BadInput if a dataset or column is missing or unreadable, or if the model does not have a label.
    """
    name = data.eval_dataset or data.dataset
    splits = open_splits(name, config=data.dataset_config, seed=seed)
    labels: list[Any] = []
    given = splits[_validation_name(splits) or _only(splits)]
    records = _noting_labels(given, labels) if task.name == "text-classification" else given
    texts = []
    kept: list[Any] = []
    for text in texts_of(records, name, data.text_column):
        texts.append(text)
        kept.append(labels[-1] if labels else None)
    if not texts:
        raise BadInput(f"The dataset '{name}' holds no text. Give one with at least one line that is not blank.")
    rows = TaskRows(task.rows(texts, processor, max_length, config=model.config, seed=seed))
    if all(label is None for label in kept):
        logger.warning(
            "'%s' has no labels for %s: they are made from the texts themselves, only to compare devices and fixes.",
            name,
            task.name,
        )
        return rows
    for row, label in zip(rows, kept, strict=True):
        row["labels"] = _checked_label(label, model.config, name)
    return rows


def _noting_labels(records: Rows, labels: list[Any]) -> Iterator[Mapping[str, Any]]:
    for record in records:
        labels.append(record.get("label", record.get("labels")))
        yield record


def _checked_label(label: Any, config: Any, dataset: str) -> Any:
    """A label in the form that the model's loss takes: the number of a class, or a number for a regression."""
    classes, kind = int(config.num_labels), config.problem_type
    if kind == "multi_label_classification":
        if isinstance(label, list) and len(label) == classes and all(value in (0, 1) for value in label):
            return [float(value) for value in label]
        wanted = f"a list of {classes} zeros and ones"
    elif kind == "regression" or (kind is None and classes == 1):
        if isinstance(label, int | float) and not isinstance(label, bool):
            return float(label)
        wanted = "a number"
    else:
        number = config.label2id.get(label) if isinstance(label, str) else label
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < classes:
            return number
        wanted = f"a whole number from 0 to {classes - 1}, or one of {', '.join(map(str, config.label2id))}"
    raise BadInput(f"The label {label!r} of the dataset '{dataset}' is not one of the model's: give {wanted}.")


def _validation_name(splits: Splits) -> str | None:
    return next((name for name in VALIDATION_SPLITS if name in splits), None)


def _only(splits: Splits) -> str:
    return "train" if "train" in splits else next(iter(splits))


def _cut(train: Examples, data: DataArguments) -> tuple[Examples, Examples]:
    count = len(train)
    taken = max(1, round(count * data.validation_fraction))
    if taken >= count:
        raise BadInput(
            f"The dataset '{data.dataset}' has {count} example(s): too few to split off a validation set. "
            "Give more text, or --eval_dataset."
        )
    logger.warning(
        "The dataset '%s' has no validation split: the last %d of %d training examples (%.3g %%) are used for it. "
        "Give --eval_dataset to evaluate on other data.",
        data.dataset,
        taken,
        count,
        100 * taken / count,
    )
    return train.part(0, count - taken), train.part(count - taken, count)


def _check_labels(examples: Examples, what: str, max_length: int) -> None:
    """Report examples without labels before their NaN is mistaken for the MPS defect."""
    without, count = examples.without_label(), len(examples)
    advice = (
        f"Such an example's loss is 0/0 on any device; that is not the MPS defect. Prompts longer than --max_length "
        f"({max_length} tokens) and empty completions leave nothing to predict."
    )
    if without == count:
        raise BadInput(f"All labels of the {count} {what} example(s) are -100. {advice}")
    if without:
        logger.warning(
            "%d of %d %s examples have no label that counts (all are -100). %s", without, count, what, advice
        )
