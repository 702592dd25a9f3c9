"""The config of a model that is not built in: read first, because tokenizer and weights need it."""

from __future__ import annotations

from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.inputs.load_problems import described
from mpsdiag.inputs.sources import explain_missing


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Read the config of a local folder or of the hub.

    Args:
        name: A local folder or a hub name.
        trust_remote_code: Let code that comes with the model run.

    Raises:
        BadInput: There is none, or it holds values that no model can have.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as problem:
        raise BadInput(explain_missing("model", name, problem)) from problem
    except (
        Exception
    ) as problem:  # what a config class makes of a bad value: TypeError, ZeroDivisionError, ...
        raise BadInput(
            f"Cannot load the model from '{name}': its config.json cannot be used ({described(problem)}). "
            "Put back the config.json that save_pretrained wrote."
        ) from problem
