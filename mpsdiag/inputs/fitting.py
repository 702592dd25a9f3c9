"""What a model has room for: how many positions, and which token ids."""

from __future__ import annotations

import logging
from typing import Any

from mpsdiag.errors import BadInput

logger = logging.getLogger(__name__)


def fitting_length(model: Any, wanted: int) -> int:
    """The asked length, or the longest the model has positions for, which is said.

    Args:
        model: Of transformers.
        wanted: In tokens.
    """
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < wanted:
        logger.warning(
            "--max_length %d is more than the model's %d positions: using %d.", wanted, positions, positions
        )
        return positions
    return wanted


def require_known_tokens(model: Any, greatest: int, name: str) -> None:
    """Refuse data whose token ids the embedding does not have: on a device they may read garbage instead of failing.

    Args:
        model: Of transformers; one without an embedding takes any.
        greatest: The greatest token id of the data.
        name: What the user calls the model.

    Raises:
        BadInput: The tokenizer gives ids that the model does not know.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    size = getattr(embedding, "num_embeddings", None)
    if isinstance(size, int) and greatest >= size:
        raise BadInput(
            f"The tokenizer of '{name}' gives the token id {greatest}, and the model has only 0 to {size - 1}. Give it "
            "the tokenizer it was trained with, or resize it: model.resize_token_embeddings(len(tokenizer))."
        )
