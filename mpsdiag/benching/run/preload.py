"""Modules that the fork server imports once, so that a cell's process starts with them.

These imports start no thread pools and touch no accelerator, so forking afterwards is safe on Linux without CUDA.
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

# These objects stay: a child's garbage collector need not visit them, which would copy every page it touches.
gc.collect()
gc.freeze()
