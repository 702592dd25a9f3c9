"""Tiny models from configs, two or three layers, with batches that have fully masked rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import mpsdiag
from mpsdiag.fixes import anatomy, layers
from mpsdiag.sdpa.watch import SdpaCall, SdpaWatch

VOCABULARY = 60
LENGTH = 12
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2}

Built = tuple[Any, dict[str, torch.Tensor]]


def padding(side: str, pads: tuple[int, ...] = (5, 0, 7), length: int = LENGTH) -> torch.Tensor:
    mask = torch.ones(len(pads), length, dtype=torch.long)
    for row, count in enumerate(pads):
        if count:
            mask[row, slice(None, count) if side == "left" else slice(length - count, None)] = 0
    return mask


def tokens(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def batch(side: str = "left", pads: tuple[int, ...] = (5, 0, 7)) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(len(pads)), "attention_mask": padding(side, pads)}


def square_mask() -> torch.Tensor:
    """Causal, with the columns of left pads switched off: what transformers makes, but from the user's hand."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return causal[None, None] & padding("left").bool()[:, None, None]


def _gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config), batch()


def _llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**GROUPED)), batch()


def _llama_one_layer() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**GROUPED | {"num_hidden_layers": 1})), batch()


def _llama_all_pad() -> Built:
    return _llama()[0], batch(pads=(0, LENGTH, 3))


def _llama_bool_mask() -> Built:
    return _llama()[0], {"input_ids": tokens(), "attention_mask": square_mask()}


def _llama_float_mask() -> Built:
    mask = torch.where(square_mask(), 0.0, -torch.inf)
    return _llama()[0], {"input_ids": tokens(), "attention_mask": mask}


def _llama_unpadded() -> Built:
    return _llama()[0], batch(pads=(0, 0, 0))


def _qwen2() -> Built:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**GROUPED)), batch()


def _mistral(side: str = "left") -> Built:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=3)), batch(side)


def _mistral_right() -> Built:
    return _mistral("right")


def _gemma3() -> Built:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4, layer_types=kinds)
    return Gemma3ForCausalLM(config), batch()


def _falcon_one_layer() -> Built:
    return _falcon(1)


def _falcon(layers: int = 2) -> Built:
    from transformers import FalconConfig, FalconForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = FalconConfig(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **shape)
    return FalconForCausalLM(config), batch()


def _bart() -> Built:
    from transformers import BartConfig, BartForConditionalGeneration

    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 32}.items()
    }
    words = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=VOCABULARY, d_model=32, max_position_embeddings=64, **sides, **words)
    config.forced_eos_token_id = None
    inputs = batch("right")
    inputs |= {"decoder_input_ids": tokens(), "decoder_attention_mask": padding("left")}
    return BartForConditionalGeneration(config), inputs


def _modernbert() -> Built:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    shape = COMMON | {"num_hidden_layers": 3, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(**shape, local_attention=4, global_attn_every_n_layers=2)
    return ModernBertForMaskedLM(config), batch("right")


def _t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=VOCABULARY, **shape, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    inputs = batch(pads=(5, 0, LENGTH))
    inputs |= {"decoder_input_ids": tokens(), "decoder_attention_mask": padding("left")}
    return T5ForConditionalGeneration(config), inputs


def _llava_gemma2() -> Built:
    """Three configs; the text model cannot use SDPA at all."""
    from transformers import CLIPVisionConfig, Gemma2Config, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    text = Gemma2Config(**GROUPED, head_dim=8)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)), batch()


def _gemma4() -> Built:
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    return Gemma4ForCausalLM(Gemma4TextConfig(**GROUPED, head_dim=8, sliding_window=4)), batch()


def _gemma2() -> Built:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8)), batch()


def _bloom() -> Built:
    from transformers import BloomConfig, BloomForCausalLM

    shape = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "pad_token_id": 0}
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, **shape, bos_token_id=1, eos_token_id=2)), batch()


BUILDERS: dict[str, Callable[[], Built]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and callable(function)
}


@pytest.fixture(scope="session")
def build() -> Callable[[str], Built]:
    """Make a model, always the same weights, in evaluation mode, and a batch for it."""

    def made(name: str) -> Built:
        torch.manual_seed(0)
        model, inputs = BUILDERS[name]()
        return model.eval(), inputs

    return made


@pytest.fixture(scope="session")
def logits() -> Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]:
    def forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    return forward


@pytest.fixture(scope="session")
def in_place() -> Callable[..., AbstractContextManager[Any]]:
    """Put a mode in place the way that works for the class: Falcon calls SDPA itself."""

    def put(model: Any, mode: str = "safe_sdpa") -> AbstractContextManager[Any]:
        falcon = type(model).__name__.startswith("Falcon")
        return mpsdiag.install(mode) if falcon else mpsdiag.apply(model, mode)

    return put


@pytest.fixture(scope="session")
def attention_of() -> Callable[[nn.Module], dict[str, str | None]]:
    """Read which attention is set, by class, for the models in a module that have a config of their own."""

    def read(model: nn.Module) -> dict[str, str | None]:
        found = {}
        for root in anatomy.transformers_models(model):
            for owner, config in anatomy.configs_in_use(root):
                name = anatomy.set_attention(config)
                found[type(owner).__name__] = (getattr(owner, layers.MARK, None) or name) if name == "sdpa" else name
        return found

    return read


@dataclass
class Verification(SdpaWatch):
    """What reached torch's own SDPA in one evaluation forward, and what came out."""

    sdpa_calls: int = 0
    masked_calls: int = 0
    dead_rows: int = 0
    nonfinite: int = 0
    values: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def saw_sdpa(self, call: SdpaCall, result: torch.Tensor) -> None:
        self.sdpa_calls += 1
        if (rows := call.masked_rows()) is not None:
            self.masked_calls += 1
            self.dead_rows += int(rows.sum())

    @property
    def ok(self) -> bool:
        return self.dead_rows == self.nonfinite == 0 < self.values


@pytest.fixture(scope="session")
def verify() -> Callable[[nn.Module, dict[str, torch.Tensor]], Verification]:
    """Run one evaluation forward without gradients; count what reached SDPA and what is not finite."""

    def run(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Verification:
        with torch.no_grad(), Verification() as found:
            output = model(**inputs)
        first = output.logits if hasattr(output, "logits") else output[0]
        found.nonfinite, found.values = int((~first.isfinite()).sum()), first.numel()
        return found

    return run


@pytest.fixture(autouse=True, scope="module")
def _no_users_from_elsewhere():
    """A GPT-2 of transformers 4 that other tests gave safe_sdpa holds a layer for as long as the process lives."""
    users = dict(layers._USERS)
    layers._USERS.update(function=0, entry=0)
    layers._take_away()
    yield
    layers._USERS.update(users)
    layers._put()
