"""Models: a built-in one with seeded weights, a local folder, or a hub name; and the limits of a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.batches import POOLED_BY
from mpsdiag.inputs.builtin import MAX_POSITIONS, builtin_config
from mpsdiag.inputs.load_problems import described, require_sizes
from mpsdiag.inputs.names import (
    explain_missing,
    is_builtin_model,
    offline_if_unreachable,
    pooling_of,
    transformer_folder,
)
from mpsdiag.inputs.nonfinite import keep_unread_nonfinite
from mpsdiag.inputs.tasks import Task, task_of
from mpsdiag.quiet import held_back
from mpsdiag.words import AUTO_TASK, DTYPES, attention_mode, count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_KEPT_AS: Final = "mpsdiag_missing_weights"
_LISTED: Final = 5
_NO_SDPA: Final = re.compile(r"does not support an attention implementation")
_STOCK_ATTENTION: Final = ("sdpa", "eager", "flash_attention_2")


def build_model(
    name: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    attention: str = "sdpa",
    vocab_size: int | None = None,
    from_config: bool = True,
    max_positions: int = MAX_POSITIONS,
    trust_remote_code: bool = False,
    task: str = AUTO_TASK,
) -> PreTrainedModel:
    """Build a model, on the CPU, in evaluation mode; `config.architectures` or the task decides its class.

    `name` is a built-in model, a local folder, or a hub name. Built-in models, and with `from_config` the others too,
    have random weights by `seed`, and `vocab_size` and (built-in ones) `max_positions` tokens if given; the state of
    the global generators is the same before and after. An attention mode of ours is applied after building and
    verified. A model without SDPA is loaded with eager attention; `model_notes` says so. Code that comes with the
    model runs only with `trust_remote_code`, which is off unless the user asks for it.

    Raises:
        BadInput: The dtype, attention mode or task is unknown; the model cannot be found or loaded, or is for another
            task.
    """
    import torch

    one_of("dtype", dtype, DTYPES)
    attention_mode(attention)
    torch_dtype = getattr(torch, dtype)
    model: Any
    at_load = attention if attention in _STOCK_ATTENTION else "sdpa"
    if is_builtin_model(name):
        config = builtin_config(name, vocab_size=vocab_size, max_positions=max_positions)
        chosen = task_of(config, task, name=name)
        model = _with_random_weights(chosen, config, seed, torch_dtype, at_load)
    else:
        with offline_if_unreachable("model", name):
            model = _load(name, task, seed, torch_dtype, at_load, vocab_size, from_config, trust_remote_code)
        setattr(model, POOLED_BY, pooling_of(name))
    if getattr(model, "loss_type", "") is None and type(model).__name__.endswith("LMHeadModel"):
        # Of some class names (GPT-2's among them) transformers cannot read the loss; it warns, and takes this one.
        model.loss_type = "ForCausalLM"
    if attention not in _STOCK_ATTENTION:
        from mpsdiag.fixes.model import apply

        apply(model, attention)
    return cast("PreTrainedModel", model)


def _with_random_weights(
    task: Task, config: Any, seed: int, dtype: Any, attention: str, **options: Any
) -> PreTrainedModel:
    """Initialize in float32 and then convert, so that every dtype has the same (rounded) weights."""
    import torch

    def make(chosen: str) -> Any:
        torch.manual_seed(seed)
        return _class_for(task, config).from_config(config, attn_implementation=chosen, **options)

    with torch.random.fork_rng(devices=[]):
        model = _with_what_attention_it_has(make, attention)
    return model.to(dtype).eval()  # type: ignore[no-any-return]  # AutoModel is untyped


def _class_for(task: Task, config: Any) -> Any:
    """The class that loads a model; for T5 and similar models the encoder gives embeddings."""
    import transformers
    from transformers.models.auto import modeling_auto

    kinds = getattr(modeling_auto, "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES", {})
    encodes = task.name == "feature-extraction" and kinds.get(config.model_type, "").endswith("EncoderModel")
    return getattr(transformers, "AutoModelForTextEncoding" if encodes else task.auto_class)


def _with_what_attention_it_has(make: Callable[[str], Any], attention: str) -> Any:
    """Make a model with the requested attention, or with eager if it has no other."""
    try:
        return make(attention)
    except ValueError as problem:
        if attention == "eager" or not _NO_SDPA.search(str(problem)):
            raise
    return make("eager")


def _load(
    name: str,
    wanted: str,
    seed: int,
    dtype: Any,
    attention: str,
    vocab_size: int | None,
    from_config: bool,
    remote_code: bool,
) -> PreTrainedModel:
    folder = transformer_folder(name)
    config = load_config(folder, trust_remote_code=remote_code)
    task = task_of(config, wanted, name=name)

    def make(chosen: str) -> Any:
        return _class_for(task, config).from_pretrained(
            folder,
            config=config,
            attn_implementation=chosen,
            use_safetensors=True,
            trust_remote_code=remote_code,
            output_loading_info=True,
        )

    try:
        # On success the messages of transformers are shown; a failure is one sentence.
        with held_back("transformers"):
            if from_config:
                if vocab_size is not None:
                    config.vocab_size = vocab_size
                return _with_random_weights(task, config, seed, dtype, attention, trust_remote_code=remote_code)
            model, info = _with_what_attention_it_has(make, attention)
    except BadInput:
        raise
    except Exception as problem:  # a damaged model fails in as many ways as there are libraries below
        raise BadInput(explain_missing("model", name, problem)) from problem
    made_for = next(iter(config.architectures or ()), None)
    if info["missing_keys"] and wanted != AUTO_TASK and made_for not in {None, *task.classes()}:
        raise BadInput(
            f"'{name}' is a {made_for}, not a model for {wanted}: it lacks weights of "
            f"{_places(info['missing_keys'])}. Leave out --task, or give a model that was trained for it."
        )
    keep_missing(model, info["missing_keys"], info["unexpected_keys"])
    keep_unread_nonfinite(model, folder, info["unexpected_keys"])
    return model.to(dtype).eval()  # type: ignore[no-any-return]  # AutoModel is untyped


def load_task(name: str, wanted: str = AUTO_TASK, *, trust_remote_code: bool = False) -> tuple[Task, Any]:
    """The task of a model by its name, and its config. Raises BadInput as `load_config` and `task_of` do."""
    if is_builtin_model(name):
        config = builtin_config(name)
    else:
        with offline_if_unreachable("model", name):
            config = load_config(transformer_folder(name), trust_remote_code=trust_remote_code)
    return task_of(config, wanted, name=name), config


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Read the config of a local folder or of the hub.

    Raises BadInput if there is none, or if it has impossible values.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as problem:
        raise BadInput(explain_missing("model", name, problem)) from problem
    except Exception as problem:  # what a config class makes of a bad value: TypeError, ZeroDivisionError, ...
        raise BadInput(
            f"Cannot load the model from '{name}': its config.json cannot be used ({described(problem)}). "
            "Put back the config.json that save_pretrained wrote."
        ) from problem
    require_sizes(config, name)
    return config


# What a checkpoint lacks, and the limits of the model.


def keep_missing(model: Any, missing: Iterable[str], unread: Iterable[str] = ()) -> None:
    """Remember which weights the checkpoint lacks, and which of its weights the class does not read."""
    setattr(model, _KEPT_AS, (tuple(sorted(missing)), tuple(sorted(unread))))


def missing_note(model: Any) -> str | None:
    """One sentence, without a full stop, about random weights; None if the checkpoint had all weights."""
    missing = getattr(model, _KEPT_AS, ((), ()))[0]
    if not missing:
        return None
    return f"the checkpoint lacks weights of {_places(missing)}: they are random, and so are the losses"


def model_notes(model: Any) -> list[str]:
    """Sentences, without full stops, about a model used differently from its checkpoint or the request."""
    notes = []
    unread = getattr(model, _KEPT_AS, ((), ()))[1]
    if unread:
        notes.append(f"{type(model).__name__} does not read the checkpoint's weights of {_places(unread)}")
    if not uses_sdpa(model):
        notes.append(
            f"{type(model).__name__} has only eager attention: it does not use scaled_dot_product_attention, so the "
            "defects of its kernels cannot reach it"
        )
    return notes


def uses_sdpa(model: Any) -> bool:
    """Whether transformers has SDPA attention for this class of model, or the class calls it itself."""
    from mpsdiag.fixes.anatomy import calls_sdpa

    return bool(getattr(model, "_supports_sdpa", True)) or calls_sdpa(model)


def attention_for(model: Any, wanted: str) -> str:
    """The attention mode for a model: the requested one, or eager if the model has no SDPA."""
    switched = bool(getattr(model, "_supports_sdpa", True))
    return wanted if switched else "eager"


def _places(names: Sequence[str]) -> str:
    """The layers of some weights, or their modules outside layers, and the number of tensors."""
    places = list(dict.fromkeys(_place(name) for name in sorted(names)))
    more = f" and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    return f"{', '.join(places[:_LISTED])}{more} ({count(len(names), 'tensor')})"


def _place(name: str) -> str:
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[:-1] or parts)


def fitting_length(model: Any, wanted: int) -> int:
    """The requested length, limited with a warning to the number of positions of the model."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < wanted:
        logger.warning("--max_length %d is more than the model's %d positions: using %d.", wanted, positions, positions)
        return positions
    return wanted


def require_known_tokens(model: Any, greatest: int, name: str) -> None:
    """Refuse token ids that the embedding does not have: on a device they may read garbage instead of failing.

    Raises BadInput if the tokenizer gives ids that the model does not have.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    size = getattr(embedding, "num_embeddings", None)
    if isinstance(size, int) and greatest >= size:
        raise BadInput(
            f"The tokenizer of '{name}' gives the token id {greatest}, but the model has only 0 to {size - 1}. Use "
            "the tokenizer it was trained with, or resize it: model.resize_token_embeddings(len(tokenizer))."
        )
