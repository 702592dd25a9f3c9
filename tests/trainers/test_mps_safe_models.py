"""Equality with the stock Trainer for models that compute another loss than a decoder's."""

import pytest
import torch
from transformers import Trainer

from mpsdiag.trainers.mps_safe import MPSSafeTrainer

SMALL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def seeded(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


def mixture_of_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **SMALL,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    return seeded(MixtralForCausalLM, config)


def bart():
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        **SMALL,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return seeded(BartForConditionalGeneration, config)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    return seeded(T5ForConditionalGeneration, config)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    return seeded(BertForMaskedLM, config)


def classifier(labels):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=labels,
    )
    return seeded(BertForSequenceClassification, config)


def tokens(count=8, length=12):
    generator = torch.Generator().manual_seed(3)
    found = []
    for index in range(count):
        ids = torch.randint(3, 97, (length,), generator=generator)
        mask = torch.ones(length, dtype=torch.long)
        mask[: index % 4] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def with_labels(values):
    return [{**example, "labels": value} for example, value in zip(tokens(len(values)), values, strict=True)]


CASES = {
    "mixture of experts": (mixture_of_experts, tokens),
    "bart": (bart, tokens),
    # Label smoothing takes the labels away, and T5 alone makes its decoder's input from them.
    "t5": (t5, lambda: [{**example, "decoder_input_ids": example["input_ids"].roll(1)} for example in tokens()]),
    "bert": (bert, tokens),
    "classes": (lambda: classifier(3), lambda: with_labels([torch.tensor(i % 3) for i in range(8)])),
    "regression": (lambda: classifier(1), lambda: with_labels([torch.tensor(i / 3) for i in range(8)])),
    "several labels": (
        lambda: classifier(3),
        lambda: with_labels([torch.tensor([1.0, 0.0, float(i % 2)]) for i in range(8)]),
    ),
}


NOT_CLASSES = ("regression", "several labels")  # so label smoothing has no meaning for them


@pytest.mark.parametrize(
    ("case", "smoothing"),
    [
        # Up to 4.57 BART itself breaks where its labels are taken out of the batch.
        pytest.param(case, s, marks=[pytest.mark.needs(transformers="5.1")] if s and case == "bart" else [])
        for case in CASES
        for s in (0.0, 0.1)
        if not (s and case in NOT_CLASSES)
    ],
)
def test_evaluation_equals_the_stock_trainer(case, smoothing, arguments):
    make, data = CASES[case]
    options = arguments(label_smoothing_factor=smoothing)
    stock = Trainer(model=make(), args=options, eval_dataset=data()).evaluate()["eval_loss"]
    ours = MPSSafeTrainer(model=make(), args=options, eval_dataset=data(), always=True, loss_chunk_bytes=2_000)
    assert ours.evaluate()["eval_loss"] == stock
    assert torch.isfinite(torch.tensor(stock))


def test_the_auxiliary_loss_of_the_experts_is_in_it(arguments):
    plain = mixture_of_experts()
    plain.config.output_router_logits = False
    plain.config.router_aux_loss_coef = 0.0
    options = {"args": arguments(), "eval_dataset": tokens(), "always": True}
    with_it = MPSSafeTrainer(model=mixture_of_experts(), **options).evaluate()["eval_loss"]
    assert with_it > MPSSafeTrainer(model=plain, **options).evaluate()["eval_loss"] + 0.1


@pytest.mark.parametrize("compiles", [None, False])
def test_a_compiled_model_is_evaluated_alike(trainer_of, examples, monkeypatch, compiles):
    """Also uncompiled, as where torch.compile cannot follow the mode that sends the losses to the CPU."""
    if compiles is not None:
        monkeypatch.setattr("mpsdiag.trainers.mps_safe.compiles_under_a_mode", lambda: compiles)
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    stock = trainer_of(Trainer, options=options, eval_dataset=examples[:4]).evaluate()["eval_loss"]
    ours = trainer_of(MPSSafeTrainer, options=options, eval_dataset=examples[:4], always=True)
    assert ours.evaluate()["eval_loss"] == stock


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_model_with_adapters(trainer_of):
    peft = pytest.importorskip("peft")
    from mpsdiag.emulation.mode import emulate_mps
    from mpsdiag.inputs.models import build_model

    def adapted():
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return peft.get_peft_model(build_model("tiny-llama", max_positions=128), config)

    for options in ({}, {"label_smoothing_factor": 0.1}):
        stock = trainer_of(Trainer, adapted(), options=options).evaluate()["eval_loss"]
        assert trainer_of(MPSSafeTrainer, adapted(), options=options, always=True).evaluate()["eval_loss"] == stock
        with emulate_mps("2.8"):
            assert trainer_of(MPSSafeTrainer, adapted(), options=options).evaluate()["eval_loss"] == stock
