"""A batch in a file: safetensors, which holds numbers and nothing that runs. Pickles are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mpsdiag.errors import BadInput, first_line

# What torch.save and pickle.dump write begins with one of these: a zip, or a pickle of protocol 2 to 5.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def load_batch(path: Path) -> dict[str, Tensor]:
    """Read a batch that `safetensors.torch.save_file` wrote: argument names to tensors.

    Args:
        path: The file.

    Raises:
        BadInput: There is no such file; it is a pickle, cut short, or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        raise BadInput(
            f"{path} is a folder; --batch takes a .safetensors file. A recorded folder is given without --batch."
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as problem:
        raise BadInput(f"Cannot read the batch {path}: {problem.strerror}.") from problem
    if head.startswith(_PICKLES):
        raise BadInput(
            f"{path} is a pickle, and loading a pickle can run any code that is in it, so it is refused. Save "
            "the batch with safetensors.torch.save_file(batch, 'batch.safetensors')."
        )
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as problem:
        raise BadInput(
            f"{path} is no complete safetensors file ({first_line(problem)}): cut short, or another format. Save the "
            "batch again with safetensors.torch.save_file."
        ) from problem
    if not found:
        raise BadInput(f"{path} holds no tensors. Save at least input_ids.")
    return found


def save_batch(path: Path, batch: Mapping[str, Tensor]) -> None:
    """Write the tensors of a batch, on the CPU and apart from each other in memory."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in batch.items()}, path)
