"""Fully masked rows in every attention people write: torch's own modules, a softmax by hand, encoder and decoder."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from mpsdiag import emulate_mps, trace

WIDTH = 8
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
EMPTY = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])


def allowed(mask):
    """Causal, and no padding: (sequences, queries, keys) bool."""
    return mask.bool()[:, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()


def by_sequence(x, mask):
    return torch.softmax((x @ x.mT).masked_fill(~allowed(mask), float("-inf")), dim=-1) @ x


def heads_with_sequences(x, mask):
    heads = x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1)
    hidden = ~allowed(mask).repeat_interleave(2, 0)
    scores = torch.baddbmm(torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")), heads, heads.mT)
    return F.softmax(scores, -1) @ heads


def added(x, mask):
    bias = torch.zeros(2, 1, 5, 5).masked_fill(~allowed(mask)[:, None], float("-inf"))
    return (x[:, None] @ x[:, None].mT + bias).softmax(dim=3)[:, 0] @ x


def written_out(x, mask):
    scores = (x @ x.mT).masked_fill(~allowed(mask), float("-inf"))
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True) @ x


class Own(nn.Module):
    def __init__(self, attention):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attention = nn.Embedding(20, WIDTH), attention

    def forward(self, input_ids, attention_mask):
        return {"logits": self.attention(self.embed(input_ids), attention_mask)}


def batch(mask=MASK):
    return {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": mask}


@pytest.mark.parametrize(
    ("attention", "operation"),
    [(by_sequence, "softmax"), (heads_with_sequences, "softmax"), (added, "softmax"), (written_out, "sub")],
)
def test_a_softmax_by_hand(attention, operation):
    origin = trace(Own(attention), batch())
    assert (origin.cause, origin.operation) == ("dead_rows", operation)
    assert origin.evidence["where"] == {"padding before the first real token": 2}
    assert "safe_sdpa does not reach it" in origin.remedy.text
    assert origin.also == []
    assert trace(Own(attention), batch(torch.ones(2, 5, dtype=torch.long))) is None


def test_a_softmax_over_queries_is_not_said_to_be_attention_over_nothing():
    """Its rows hide some keys only; what is empty is a column."""

    def over_queries(x, mask):
        return torch.softmax((x @ x.mT).masked_fill(~mask.bool()[:, None, :], float("-inf")), dim=1) @ x

    assert trace(Own(over_queries), batch()).cause == "unknown"


class TorchAttention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.inner, self.need_weights = nn.MultiheadAttention(WIDTH, 2, batch_first=True), need_weights

    def forward(self, x, mask):
        hidden = ~allowed(mask).repeat_interleave(2, 0)
        return self.inner(x, x, x, attn_mask=hidden, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("train", [False, True])
def test_torchs_attention_with_weights(train):
    class Trained(Own):
        def forward(self, input_ids, attention_mask):
            logits = super().forward(input_ids, attention_mask)["logits"]
            return {"loss": logits.sum(), "logits": logits}

    origin = trace(Trained(TorchAttention(need_weights=True)), batch(), train=train)
    assert (origin.cause, origin.module, origin.operation) == ("dead_rows", "attention.inner", "softmax")
    assert origin.evidence["where"] == {"padding before the first real token": 2}


def test_torchs_attention_without_weights_under_emulation():
    """The CPU has a fused path of its own, whose fully masked rows are NaN as well; the slow path gives zeros."""
    model = Own(TorchAttention(need_weights=False))
    with emulate_mps("2.8"):
        emulated = trace(model, batch())
    assert (emulated.cause, emulated.operation) == ("dead_rows", "scaled_dot_product_attention")
    fused = trace(model, batch())
    assert (fused.cause, fused.module, fused.operation) == ("dead_rows", "attention.inner", "MultiheadAttention")
    assert fused.evidence["where"] == emulated.evidence["where"] == {"padding before the first real token": 2}
    assert "set_fastpath_enabled(False)" in fused.remedy.commands[0]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert trace(model, batch()) is None
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def bart():
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = hf.BartConfig(vocab_size=60, d_model=16, max_position_embeddings=32, **sides)
    config.pad_token_id, config.decoder_start_token_id = 0, 2
    torch.manual_seed(0)
    return hf.BartForConditionalGeneration(config).eval()


@pytest.mark.needs(transformers="5.1")  # Older ones write finite masks for BART.
@pytest.mark.parametrize("length", [7, 9])
def test_the_decoder_is_judged_by_its_own_mask(length):
    """Source and target may be of one length; the padding that counts is the target's."""
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    source = torch.ones_like(ids)
    source[1, 6:] = 0
    target = torch.ones(2, length, dtype=torch.long)
    target[0, :3] = 0
    given = {"input_ids": ids, "attention_mask": source, "decoder_input_ids": ids[:, :length]}
    with emulate_mps("2.8"):
        origin = trace(bart(), {**given, "decoder_attention_mask": target})
        clean = trace(bart(), given)
    assert (origin.cause, origin.layer, origin.module) == ("dead_rows", 0, "model.decoder.layers.0.self_attn")
    assert origin.evidence["where"] == {"padding before the first real token": 3}
    assert clean is None


@pytest.mark.needs(transformers="5.1")
def test_a_source_of_padding_only_is_named_where_the_decoder_reads_it():
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1] = 0
    with torch.no_grad():
        encoded = bart().get_encoder()(input_ids=ids).last_hidden_state
    given = {"encoder_outputs": (encoded,), "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    with emulate_mps("2.8"):
        origin = trace(bart(), given)
    assert (origin.cause, origin.module) == ("bad_mask", "model.decoder.layers.0.encoder_attn")
    assert "padding only" in origin.summary
