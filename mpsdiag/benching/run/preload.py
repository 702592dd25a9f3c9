"""What the fork server imports once, so that a cell's process starts with it. Imported for that effect only.

Importing starts no thread pools and touches no accelerator; forking after it is safe on Linux without CUDA.
"""

import gc
import importlib

MODULES = (
    "mpsdiag.benching.run.cell",
    "mpsdiag.scenario.scenario",
    "mpsdiag.fixes.model",
    "mpsdiag.scenario.preparation",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.qwen2.modeling_qwen2",
)

for name in MODULES:
    importlib.import_module(name)

# What is here stays: the collector of a child need not walk it, which would copy every page it touches.
gc.collect()
gc.freeze()
