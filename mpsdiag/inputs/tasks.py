"""The task of a model, by Hugging Face's names, and what follows from it.

A task determines how a model is loaded, how texts become a batch, which labels it is evaluated on, which positions of
its output are real, and what is compared. `config.architectures` decides the task of a model.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.batches import LABELS, Row, contrastive_loss, padded, with_processor, with_tiny_picture
from mpsdiag.inputs.builtin import BUILTIN_CONFIGS
from mpsdiag.inputs.modules import first_tensor
from mpsdiag.inputs.nonfinite import IGNORED_LABEL
from mpsdiag.inputs.texts import encode
from mpsdiag.words import AUTO_TASK, TASKS

Collate = Callable[[Sequence[Row]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A task. `table` names transformers' table of its classes, without `MODEL_` and `MAPPING_NAMES`."""

    name: str
    auto_class: str
    table: str

    @property
    def by_type(self) -> Mapping[str, Any]:
        """The names of the model classes for this task, by the type of the model."""
        from transformers.models.auto import modeling_auto

        found: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_{self.table}MAPPING_NAMES")
        return found

    def classes(self) -> set[str]:
        """The names of the model classes for this task."""
        nested = ([name] if isinstance(name, str) else name for name in self.by_type.values())
        return {name for names in nested for name in names}

    def rows(self, texts: Iterable[str], processor: Any, max_length: int, *, config: Any, seed: int = 0) -> list[Row]:
        """Turn texts into rows for `collator`: `input_ids`, `attention_mask` (lists), and inputs for pictures.

        `processor` is the tokenizer, and for image-text models their processor, except the built-in one; `max_length`
        is in tokens. For an image-text model every second text gets a picture, by `seed`.
        """
        if self.name != "image-text-to-text":
            return [dict(row) for row in encode(texts, processor, max_length)]
        generator = random.Random(seed)
        builder = with_processor if hasattr(processor, "image_processor") else with_tiny_picture
        return [
            builder(text, index % 2 == 0, processor, max_length, config, generator) for index, text in enumerate(texts)
        ]

    def collator(self, processor: Any, model: Any, *, pad_to_multiple_of: int | None = None) -> Collate:
        """Make batches from rows: padded on the tokenizer's side, with the labels of this task.

        Texts without labels get some: the next tokens, masked tokens, the text itself (text2text), or classes made from
        the token ids. Rows with `labels` keep them (classification).
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        add_labels = LABELS[self.name]

        def collate(rows: Sequence[Row]) -> dict[str, Any]:
            batch = padded(rows, tokenizer, pad_to_multiple_of, model.dtype)
            given = [row["labels"] for row in rows if "labels" in row]
            add_labels(batch, given=given, tokenizer=tokenizer, model=model)
            return batch

        return collate

    def real(self, batch: Mapping[str, Any]) -> Tensor:
        """Which positions of the output count: (sequences, positions) bool, on the CPU.

        One position for each sequence if the output has one; for text2text the labelled positions of the decoder.
        """
        ids = batch["input_ids"]
        if self.name == "text-classification":
            return torch.ones(len(ids), 1, dtype=torch.bool)
        if self.name == "text2text-generation":
            labels: Tensor = batch["labels"]
            return (labels != IGNORED_LABEL).cpu()
        mask = batch.get("attention_mask")
        return torch.ones(ids.shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool().cpu()

    def compared(self, output: Any) -> Tensor | None:
        """What is compared, (sequences, positions, features): logits, or hidden states of a model without a head.

        The output is that of the model or of a Trainer's prediction step; None if it has neither.
        """
        found = first_tensor(output)
        if found is None and hasattr(output, "last_hidden_state"):
            found = output.last_hidden_state
        return found.unsqueeze(1) if found is not None and found.dim() == 2 else found

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """The loss of a model that has none itself, as `compute_loss_func` of a Trainer; None for other models."""
        return contrastive_loss if self.name == "feature-extraction" else None


# The first task whose table has the class counts: some classes are in two.
ALL_TASKS: Final = {
    task.name: task
    for task in (
        Task("image-text-to-text", "AutoModelForImageTextToText", "FOR_IMAGE_TEXT_TO_TEXT_"),
        Task("text2text-generation", "AutoModelForSeq2SeqLM", "FOR_SEQ_TO_SEQ_CAUSAL_LM_"),
        Task("text-generation", "AutoModelForCausalLM", "FOR_CAUSAL_LM_"),
        Task("fill-mask", "AutoModelForMaskedLM", "FOR_MASKED_LM_"),
        Task("text-classification", "AutoModelForSequenceClassification", "FOR_SEQUENCE_CLASSIFICATION_"),
        Task("token-classification", "AutoModelForTokenClassification", "FOR_TOKEN_CLASSIFICATION_"),
        Task("feature-extraction", "AutoModel", ""),
    )
}


def task_of(config: Any, wanted: str = AUTO_TASK, *, name: str = "") -> Task:
    """The task of a model: the requested one, or that of `config.architectures`.

    A config without architectures means a causal language model if there is one of its type, otherwise the first task
    that has a class for it. `name` is the user's name of the model, for the message. Raises BadInput if there is no
    such task, or if the architecture belongs to none of them.
    """
    if wanted != AUTO_TASK:
        return ALL_TASKS[one_of("task", wanted, (AUTO_TASK, *TASKS))]
    architecture = next(iter(getattr(config, "architectures", None) or ()), None)
    if architecture is not None:
        found = next((task for task in ALL_TASKS.values() if architecture in task.classes()), None)
        if found is not None or name in BUILTIN_CONFIGS:
            return found or ALL_TASKS["text-generation"]
        similar = next((task for ending, task in _ENDINGS.items() if architecture.endswith(ending)), None)
        if similar is not None:  # Code that comes with a model is in none of the tables.
            return ALL_TASKS[similar]
        raise BadInput(
            f"'{name}' is a {architecture}, which has none of the tasks known here. Choose one with --task: "
            f"{', '.join(TASKS)}."
        )
    kind, usual = getattr(config, "model_type", None), ALL_TASKS["text-generation"]
    return next((task for task in (usual, *ALL_TASKS.values()) if kind in task.by_type), usual)


_ENDINGS: Final = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
}
