"""A stand-alone script: it runs in an environment with torch and transformers but without mpsdiag.

Exit code as for `git bisect run`: 0 good, 1 bad (non-finite values where a batch is padded), 125 cannot be tested.
"""

import argparse
import math
import sys
from typing import Any, Optional

SKIP = 125


def main() -> int:
    """Run the kernel and the scenario; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    device = parser.parse_args().device
    try:
        import torch
    except (ImportError, OSError, ValueError) as problem:  # ValueError: a CUDA library is missing
        _show(f"torch cannot be imported: {problem}")
        return SKIP
    _show(f"torch {torch.__version__} on {device}")
    results = [_kernel(torch, device), _scenario(torch, device)]
    if False in results:
        return 1
    return 0 if results[0] else SKIP


def _kernel(torch: Any, device: str) -> Optional[bool]:  # noqa: UP045 - any Python that a release runs on
    """Whether fully masked rows come out finite, boolean and additive masks, with and without gradients."""
    good: Optional[bool] = None  # noqa: UP045
    for rows in (4, 32):
        generator = torch.Generator().manual_seed(rows)
        query, key, value = (
            torch.randn(1, 4, rows, 64, generator=generator).to(device).requires_grad_() for _ in range(3)
        )
        allowed = torch.ones(rows, rows, dtype=torch.bool).tril()
        allowed[: rows // 2] = False
        blocked = torch.zeros(rows, rows).masked_fill(~allowed, -math.inf)
        for kind, mask in (("boolean", allowed), ("additive", blocked)):
            for gradients in (False, True):
                name = f"kernel, {rows} rows, {kind} mask, gradients {'on' if gradients else 'off'}"
                try:
                    with torch.set_grad_enabled(gradients):
                        output = torch.nn.functional.scaled_dot_product_attention(
                            query, key, value, attn_mask=mask.to(device)
                        )
                    finite = bool(torch.isfinite(output.detach().cpu()).all())
                except (RuntimeError, NotImplementedError, AssertionError) as problem:
                    _show(f"{name}: cannot run: {problem}")
                    continue
                _show(f"{name}: {'finite' if finite else 'NaN in fully masked rows'}")
                good = finite and good is not False
    return good


def _scenario(torch: Any, device: str) -> Optional[bool]:  # noqa: UP045
    """Whether a small Llama has a finite loss on a left-padded batch, as an evaluation computes it."""
    try:
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation="sdpa").to(device).eval()
        tokens = torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(0))
        attention = torch.ones_like(tokens)
        attention[0, :16] = 0  # left padding
        labels = tokens.masked_fill(attention == 0, -100)
        batch = {"input_ids": tokens, "attention_mask": attention, "labels": labels}
        with torch.no_grad():
            loss = float(model(**{name: one.to(device) for name, one in batch.items()}).loss)
    except Exception as problem:  # noqa: BLE001 - any release may refuse in its own way
        _show(f"scenario: cannot run: {type(problem).__name__}: {problem}")
        return None
    _show(f"scenario, small Llama, left padding, no gradients: eval_loss {loss}")
    return math.isfinite(loss)


def _show(sentence: str) -> None:
    print(sentence, flush=True)  # noqa: T201 - this is the log


if __name__ == "__main__":
    sys.exit(main())
