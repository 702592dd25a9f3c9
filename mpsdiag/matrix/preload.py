"""What the fork server imports once, so that a cell's process starts with it. Imported for that effect only.

Importing starts no thread pools and touches no accelerator; forking after it is safe on Linux without CUDA.
"""

from __future__ import annotations

import gc

import mpsdiag.diagnosis.scenario
import mpsdiag.fixes
import mpsdiag.matrix.cell
import mpsdiag.training.models
import mpsdiag.training.tokenizer
import mpsdiag.training.trainers  # noqa: F401 - imported for the effect

# What is here stays: the collector of a child need not walk it, which would copy every page it touches.
gc.collect()
gc.freeze()
