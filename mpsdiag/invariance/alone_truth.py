"""The output at the real positions of an arrangement, and its distance from float64, alone."""

import inspect
import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpsdiag.emulation.mode import suspended
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.fixes.model import apply, put_in_place
from mpsdiag.inputs.modules import copy_to_cpu, first_tensor, logits_of, to_float64
from mpsdiag.invariance.arrangements import Arrangement, Example, alone, joined, with_positions
from mpsdiag.sdpa.float64 import allowed_error, largest_error

NEW_TOKENS: Final = 2
_LABELS: Final = ("labels", "decoder_input_ids", "decoder_attention_mask")


@dataclass
class AloneTruth:
    """Each sequence alone: its outputs in float64 on the CPU, and the allowed error of a correct result."""

    examples: list[Example]
    """On the CPU."""
    outputs: list[list[Tensor]]
    allowed: float
    twin: nn.Module
    """The float64 copy of the model that gave the outputs."""
    generated: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By number of the example: new tokens and their logits, if requested."""


def outputs_of(model: nn.Module, arrangement: Arrangement, *, positions: bool = False) -> list[list[Tensor]]:
    """The outputs that are compared, a list for each row of an example, each tensor (positions, D).

    They are the logits or, without logits, the hidden states and the pooled embedding. Those of a decoder are compared
    at its labels, others at real positions, and outputs without positions as a whole. `positions` gives the model
    position ids made from the attention mask.
    """
    inputs = with_positions(arrangement.batch) if positions else dict(arrangement.batch)
    decodes = has_decoder(model)
    if not decodes or inputs.get("labels", inputs["attention_mask"]).is_floating_point():  # Those of an embedding.
        inputs = {name: tensor for name, tensor in inputs.items() if name not in _LABELS}
    output = model(**inputs)
    logits = logits_of(output)
    found = [logits] if logits is not None else [first_tensor(output), getattr(output, "pooler_output", None)]
    tensors = [tensor for tensor in found if isinstance(tensor, Tensor)]
    if not tensors:
        raise BadInput(f"{type(model).__name__} returns neither logits nor hidden states: nothing can be compared.")
    kept = inputs["attention_mask"].bool()
    if "labels" in inputs:
        kept = inputs["labels"] != -100
    elif "decoder_input_ids" in inputs:
        kept = torch.ones_like(inputs["decoder_input_ids"]).bool()
    return [
        [
            (tensor[row][kept[row]] if tensor.shape[:2] == kept.shape else tensor[row].reshape(1, -1)).detach()
            for tensor in tensors
        ]
        for row in range(len(arrangement.rows))
    ]


def has_decoder(model: nn.Module) -> bool:
    """Whether the model is an encoder with a decoder, whose logits belong to the labels."""
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return both and any("decoder" in name for name, _ in model.named_modules())  # T5 has its own encoder.


def text_config(model: Any) -> Any:
    """The config of a model, or of its text part if it has several; None if there is none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def takes_positions(model: nn.Module) -> bool:
    """Whether the forward of a model takes position ids."""
    return "position_ids" in inspect.signature(model.forward).parameters


def generate(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The first new tokens, greedily: (sequences, tokens), and their logits (sequences, tokens, vocabulary)."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in _LABELS}
    found = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences[:, -NEW_TOKENS:].cpu(), torch.stack(found.logits, 1).detach().cpu()


def reference_of(model: nn.Module, examples: Sequence[Example]) -> AloneTruth:
    """Compute the reference on the CPU, outside any emulation, with copies of the model and the examples.

    Raises CannotDecide where the CPU cannot run the model in its dtype or in float64, or gives no finite numbers.
    """
    on_cpu = [{name: tensor.cpu() for name, tensor in example.items()} for example in examples]
    batches = alone(on_cpu)
    with suspended(), torch.no_grad():
        twin = copy_to_cpu(model)
        with suppress(BadInput):
            apply(twin, "sdpa")
        try:
            # Two ways, because one of them is sometimes right by chance.
            plain = []
            for way in ("eager", "sdpa"):
                with in_attention(twin, way):
                    plain.append([outputs_of(twin, batch)[0] for batch in batches])
            to_float64(twin)
            exact = [outputs_of(twin, _widened(batch))[0] for batch in batches]
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as problem:
            raise CannotDecide(f"The CPU gives no reference for this model: {problem}") from problem
    allowed = max(
        allowed_error(right, mine.dtype, [largest_error(mine, right)])
        for way in plain
        for one, other in zip(way, exact, strict=True)
        for mine, right in zip(one, other, strict=True)
    )
    if not math.isfinite(allowed):
        raise CannotDecide("Alone and unpadded, on the CPU, the model gives non-finite numbers.")
    return AloneTruth(on_cpu, exact, allowed, twin)


def widen_bound(model: nn.Module, truth: AloneTruth) -> None:
    """Allow more if plain attention errs more for a sequence beside copies of itself, or at shifted positions.

    The largest error of two runs can be small by chance. Copies only change how the CPU blocks its products; in a model
    with rotary positions the same is true of a shift of all positions.
    """
    found = [truth.allowed / 2]
    shifts = (0, 7, 31) if takes_positions(model) and _is_rotary(model) else (0,)
    with suspended(), torch.no_grad():
        twin = copy_to_cpu(model)
        for way, copies, shift in itertools.product(("eager", "sdpa"), range(1, 6), shifts):
            for example, exact in zip(truth.examples, truth.outputs, strict=True):
                batch = joined([example] * copies)
                if shift:
                    batch["position_ids"] = with_positions(batch)["position_ids"] + shift
                with in_attention(twin, way):
                    outputs = outputs_of(twin, Arrangement("copies", batch, (0,) * copies))
                pairs = (pair for row in outputs for pair in zip(row, exact, strict=True))
                found += [largest_error(mine, right) for mine, right in pairs]
    truth.allowed = 2 * max(found)


def _is_rotary(model: nn.Module) -> bool:
    text = text_config(model)
    return any(getattr(text, name, None) for name in ("rope_parameters", "rope_theta", "rope_scaling"))


def in_attention(model: nn.Module, name: str) -> Any:
    """Set an attention mode during a block; a model that cannot have it keeps its own."""
    try:
        return put_in_place(model, name)
    except BadInput:
        return nullcontext()


def distance(model: nn.Module, arrangement: Arrangement, truth: AloneTruth, *, positions: bool = False) -> float:
    """How far an arrangement is from the sequences alone: the largest difference, infinite for NaN.

    For generated tokens it is how much the reference prefers its own token to the first one that differs.
    """
    return max(errors(model, arrangement, truth, positions=positions))


def errors(model: nn.Module, arrangement: Arrangement, truth: AloneTruth, *, positions: bool = False) -> list[float]:
    """The largest difference at each position of a sequence, counted from its first token; or of a new token."""
    with torch.no_grad():
        if arrangement.generates:
            tokens, _ = generate(model, arrangement.batch)
            found = [_regret(truth, example, tokens[row]) for row, example in enumerate(arrangement.rows)]
        else:
            outputs = outputs_of(model, arrangement, positions=positions)
            found = [
                (mine.cpu().double() - right).abs().amax(-1).nan_to_num(nan=math.inf)
                for row, example in enumerate(arrangement.rows)
                for mine, right in zip(outputs[row], truth.outputs[example], strict=True)
            ]
    return torch.nn.utils.rnn.pad_sequence(found).amax(1).tolist()


def _regret(truth: AloneTruth, example: int, tokens: Tensor) -> Tensor:
    """How much the reference prefers its own token at the first step where the two differ, (1,)."""
    if example not in truth.generated:
        with suspended():
            right, logits = generate(truth.twin, _widened(alone([truth.examples[example]])[0]).batch)
        truth.generated[example] = right[0], logits[0]
    right, logits = truth.generated[example]
    different = (tokens != right).nonzero()
    if not len(different):
        return torch.zeros(1, dtype=torch.float64)
    step = int(different[0])
    return (logits[step, right[step]] - logits[step, tokens[step]])[None]


def _widened(arrangement: Arrangement) -> Arrangement:
    wide = {n: t.double() if t.is_floating_point() else t for n, t in arrangement.batch.items()}
    return Arrangement(arrangement.name, wide, arrangement.rows)
