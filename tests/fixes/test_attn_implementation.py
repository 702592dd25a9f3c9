"""transformers' own argument: attn_implementation="safe_sdpa", whichever library is imported first."""

import subprocess
import sys

import pytest
import torch

PROGRAM = """
{imports}
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config, attn_implementation="safe_sdpa").eval()
model.save_pretrained({folder!r})
loaded = AutoModelForCausalLM.from_pretrained({folder!r}, attn_implementation="safe_sdpa").eval()
other = AutoModelForCausalLM.from_pretrained({folder!r}).eval()
ids = torch.arange(12).reshape(2, 6)
mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
with torch.no_grad(), mpsdiag.emulate_mps("2.8"):
    broken = other(input_ids=ids, attention_mask=mask).logits
    if hasattr(other, "set_attn_implementation"):
        other.set_attn_implementation("safe_sdpa")
    else:
        other.config._attn_implementation = "safe_sdpa"
    logits = [one(input_ids=ids, attention_mask=mask).logits for one in (model, loaded, other)]
assert broken.isnan().any()
assert all(one.isfinite().all() for one in logits)
assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import mpsdiag",
        "import transformers.modeling_utils\nimport mpsdiag",
        "import transformers\nimport mpsdiag\nimport transformers.modeling_utils",
    ],
)
def test_it_is_known_in_either_order(imports, tmp_path):
    program = PROGRAM.format(imports=imports, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_mpsdiag_imports_neither_library():
    code = "import sys, mpsdiag; sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_does_not_exist_is_still_refused():
    from transformers import AutoModelForCausalLM

    import mpsdiag  # noqa: F401 - registers
    from mpsdiag.inputs.builtin import builtin_config

    with pytest.raises((ValueError, ImportError), match="unsafe_sdpa"):
        AutoModelForCausalLM.from_config(builtin_config("tiny-llama"), attn_implementation="unsafe_sdpa")
    assert torch.get_default_dtype() == torch.float32
