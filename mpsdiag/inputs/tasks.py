"""What a model is for, by Hugging Face's names of tasks, and what follows from it.

A task says how a model is loaded, what a batch of texts is for it, which labels it is evaluated on, which positions of
its output are real, and what is compared. `config.architectures` decides which task a model has.
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
    """One task. `table` is the name of transformers' table of its classes, without `MODEL_` and `_MAPPING_NAMES`."""

    name: str
    auto_class: str
    table: str

    def classes(self) -> set[str]:
        """The names of the model classes for this task."""
        from transformers.models.auto import modeling_auto

        prefix = "MODEL_MAPPING" if not self.table else f"MODEL_{self.table}_MAPPING"
        found: Mapping[str, Any] = getattr(modeling_auto, f"{prefix}_NAMES")
        nested = ([name] if isinstance(name, str) else name for name in found.values())
        return {name for names in nested for name in names}

    def rows(self, texts: Iterable[str], processor: Any, max_length: int, *, config: Any, seed: int = 0) -> list[Row]:
        """Turn texts into rows that `collator` takes: `input_ids`, `attention_mask` (lists), and what pictures need.

        Args:
            texts: The texts.
            processor: The tokenizer; of image-text models their processor, or the tokenizer of the built-in one.
            max_length: Longest text, in tokens.
            config: Of the model.
            seed: Of the pictures, which every second text is given.
        """
        if self.name != "image-text-to-text":
            return [dict(row) for row in encode(texts, processor, max_length)]
        generator = random.Random(seed)
        builder = with_processor if hasattr(processor, "image_processor") else with_tiny_picture
        return [
            builder(text, index % 2 == 0, processor, max_length, config, generator) for index, text in enumerate(texts)
        ]

    def collator(self, processor: Any, model: Any, *, pad_to_multiple_of: int | None = None) -> Collate:
        """Make batches of rows: padded on the tokenizer's side, with the labels of this task.

        Text that has no labels of its own is given ones: the next tokens, masked ones, the text itself (text2text), or
        classes made from the token ids. Rows with `labels` keep them (classification).
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        add_labels = LABELS[self.name]

        def collate(rows: Sequence[Row]) -> dict[str, Any]:
            batch = padded(rows, tokenizer, pad_to_multiple_of, model.dtype)
            given = [row["labels"] for row in rows if "labels" in row]
            add_labels(batch, given, tokenizer, model)
            return batch

        return collate

    def real(self, batch: Mapping[str, Any]) -> Tensor:
        """Which positions of the output count: (sequences, positions) bool, on the CPU.

        One position a sequence where the output has one; for text2text those of the decoder that are labelled.
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

        Args:
            output: Of the model, or what a Trainer's prediction step makes of it; None is returned if it has neither.
        """
        found = first_tensor(output)
        if found is None and hasattr(output, "last_hidden_state"):
            found = output.last_hidden_state
        return found.unsqueeze(1) if found is not None and found.dim() == 2 else found

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """The loss of a model that has none of its own, as `compute_loss_func` of a Trainer; None for the others."""
        return contrastive_loss if self.name == "feature-extraction" else None


# The first whose table has a class is its task: some classes are in two.
ALL_TASKS: Final = {
    task.name: task
    for task in (
        Task("image-text-to-text", "AutoModelForImageTextToText", "FOR_IMAGE_TEXT_TO_TEXT"),
        Task("text2text-generation", "AutoModelForSeq2SeqLM", "FOR_SEQ_TO_SEQ_CAUSAL_LM"),
        Task("text-generation", "AutoModelForCausalLM", "FOR_CAUSAL_LM"),
        Task("fill-mask", "AutoModelForMaskedLM", "FOR_MASKED_LM"),
        Task("text-classification", "AutoModelForSequenceClassification", "FOR_SEQUENCE_CLASSIFICATION"),
        Task("token-classification", "AutoModelForTokenClassification", "FOR_TOKEN_CLASSIFICATION"),
        Task("feature-extraction", "AutoModel", ""),
    )
}


def task_of(config: Any, wanted: str = AUTO_TASK, *, name: str = "") -> Task:
    """The task of a model: the one that is asked for, or that of `config.architectures`.

    A config without architectures is that of a causal language model if there is one of its type, otherwise of the
    first task that has a class for it.

    Args:
        config: Of transformers.
        wanted: A task, or `auto`.
        name: What the user calls the model, for the sentence.

    Raises:
        BadInput: There is no such task, or the architecture is made for none of them.
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
    from transformers.models.auto import modeling_auto

    kind = getattr(config, "model_type", None)
    for task in (ALL_TASKS["text-generation"], *ALL_TASKS.values()):
        prefix = "MODEL_MAPPING" if not task.table else f"MODEL_{task.table}_MAPPING"
        if kind in getattr(modeling_auto, f"{prefix}_NAMES"):
            return task
    return ALL_TASKS["text-generation"]


_ENDINGS: Final = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
}
