"""A mask that is edited between two calls, in every way that leaves its version counter alone: nothing is stale."""

import copy
import gc
import multiprocessing
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mpsdiag
from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention

L = 8


def keep() -> torch.Tensor:
    return torch.ones(1, 1, L, L, dtype=torch.bool).tril()


def other() -> torch.Tensor:
    """Rows 0, 1 and 2 are fully masked, and row 5 sees other keys."""
    mask = keep()
    mask[..., :3, :] = False
    mask[..., 5, :] = ~mask[..., 5, :]
    return mask


def _numpy(mask):
    mask.numpy()[...] = other().numpy()


def _data(mask):
    mask.data[...] = other()


def _data_replaced(mask):
    mask.data = other()


def _detached_data(mask):
    mask.detach().data.copy_(other())


def _dlpack(mask):
    # bool is exported as bytes by some releases of torch: the alias is made of them
    torch.from_dlpack(mask.view(torch.uint8)).copy_(other().view(torch.uint8))


def _numpy_dlpack(mask):
    np.from_dlpack(mask.view(torch.uint8)).view(np.bool_)[...] = other().numpy()


def _storage(mask):
    mask.untyped_storage().copy_(other().untyped_storage())


def _alias_of_storage(mask):
    torch.tensor([], dtype=torch.bool).set_(mask.untyped_storage()).copy_(other().flatten())


def _set(mask):
    mask.set_(other())


def _fill(mask):
    target = mask.numpy()
    for place, value in np.ndenumerate(other().numpy()):
        target[place] = value


def _write(shared):
    shared.copy_(other())


def _another_process(mask):
    process = multiprocessing.get_context("fork").Process(target=_write, args=(mask,))
    process.start()
    process.join()
    assert process.exitcode == 0


EDITS = [
    edit
    for name, edit in list(globals().items())
    if name.startswith("_") and callable(edit) and getattr(edit, "__module__", None) == __name__ and edit is not _write
]


@pytest.fixture(params=["alone", "installed"])
def attend(request):
    """Attention with the fix, as a function and as a patch."""
    if request.param == "alone":
        yield safe_scaled_dot_product_attention
    else:
        with mpsdiag.install("safe_sdpa"):
            yield F.scaled_dot_product_attention


@pytest.mark.parametrize(
    "edit",
    [  # torch 2.7 hands numpy a view that cannot be written
        pytest.param(edit, marks=[pytest.mark.needs(torch="2.9")] if edit is _numpy_dlpack else []) for edit in EDITS
    ],
)
def test_an_edit_that_nobody_can_notice(edit: Callable[[torch.Tensor], None], attend):
    q, k, v = torch.randn(3, 1, 2, L, 4, generator=torch.Generator().manual_seed(0))
    mask = keep()
    if edit is _another_process:
        mask.share_memory_()
    elif edit in {_data_replaced, _set}:
        mask = mask.clone()
    first = attend(q, k, v, mask)
    edit(mask)
    assert torch.equal(mask, other())
    with mpsdiag.install("sdpa"):
        want = F.scaled_dot_product_attention(q, k, v, mask)
    got = attend(q, k, v, mask)
    assert torch.equal(got, want)
    assert not got[:, :, :3].any()
    assert not torch.equal(got, first)


def test_a_buffer_that_is_refilled_for_each_batch(attend):
    q, k, v = torch.randn(3, 1, 2, L, 4, generator=torch.Generator().manual_seed(0))
    buffer = np.zeros((L, L), dtype=np.float32)
    mask = torch.from_numpy(buffer)
    for batch in (keep(), other(), keep()):
        buffer[...] = torch.where(batch[0, 0], 0.0, -torch.inf).numpy()
        got = attend(q, k, v, mask)
        with mpsdiag.install("sdpa"):
            assert torch.equal(got, F.scaled_dot_product_attention(q, k, v, batch))


def test_a_deep_copy_that_is_edited_in_place(attend):
    q, k, v = torch.randn(3, 1, 2, L, 4, generator=torch.Generator().manual_seed(0))
    mask = keep()
    attend(q, k, v, mask)
    twin = copy.deepcopy(mask)
    twin.copy_(other())
    with mpsdiag.install("sdpa"):
        want = F.scaled_dot_product_attention(q, k, v, other())
    assert torch.equal(attend(q, k, v, twin), want)


def test_a_thousand_views_of_a_buffer_leave_nothing_behind(attend):
    buffer = torch.ones(1024, 1024, dtype=torch.bool).tril()
    q = torch.randn(1, 1, 1000, 2)
    attend(q[:, :, :1], q[:, :, :1], q[:, :, :1], buffer[:1, :1])
    gc.collect()
    tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    for length in range(1, 1001):
        part = q[:, :, :length]
        attend(part[:, :, :2], part, part, buffer[: min(2, length), :length])
    gc.collect()
    assert sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()) <= tensors + 2
    assert buffer.__dict__ == {}


def test_a_mask_is_saved_and_loaded_as_in_stock_torch(attend, tmp_path):
    mask = other()
    stock = tmp_path / "stock.pt"
    torch.save(mask, stock)
    attend(*torch.randn(3, 1, 2, L, 4), mask)
    torch.save(mask, tmp_path / "after.pt")
    assert (tmp_path / "after.pt").stat().st_size == stock.stat().st_size
    assert torch.equal(torch.load(tmp_path / "after.pt", weights_only=True), mask)
    assert b"mpsdiag" not in pickle.dumps(mask)


def test_a_mask_dies_with_its_last_reference(attend):
    mask = other()
    attend(*torch.randn(3, 1, 2, L, 4), mask)
    reference = weakref.ref(mask)
    del mask
    assert reference() is None
