import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_pt_utils import LabelSmoother

from mpsdiag.trainers.cpu_losses import ChunkedLabelSmoother, chunks, cross_entropy, rows_per_chunk

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def same(left, right):
    """Bit for bit, NaN equal to NaN, and the same dtype."""
    return (
        left.dtype == right.dtype
        and torch.equal(left.isnan(), right.isnan())
        and torch.equal(left.nan_to_num(), right.nan_to_num())
    )


def logits_and_labels(shape, classes, ignored, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(*shape, classes, generator=generator) * 6).to(dtype)
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(*shape, generator=generator) < ignored] = -100
    return logits, labels


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 400),
    classes=st.integers(1, 300),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    chunk_bytes=st.integers(1, 60_000),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_cross_entropy_is_bit_equal_to_torch(rows, classes, ignored, chunk_bytes, reduction, dtype, seed):
    logits, labels = logits_and_labels((rows,), classes, ignored, seed, dtype)
    stock = F.cross_entropy(logits, labels, reduction=reduction)
    assert same(cross_entropy(logits, labels, reduction=reduction, chunk_bytes=chunk_bytes), stock)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 7),
    length=st.integers(2, 50),
    classes=st.integers(1, 200),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    chunk_bytes=st.integers(1, 60_000),
    items=st.sampled_from([None, 7, torch.tensor(7)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_label_smoothing_is_bit_equal_to_transformers(batch, length, classes, ignored, chunk_bytes, items, dtype, seed):
    logits, labels = logits_and_labels((batch, length), classes, ignored, seed, dtype)
    if "num_items_in_batch" not in inspect.signature(LabelSmoother.__call__).parameters:
        items = None  # older transformers
    given = {} if items is None else {"num_items_in_batch": items}
    stock = LabelSmoother(epsilon=0.1)({"logits": logits}, labels.clone(), shift_labels=True, **given)
    ours = ChunkedLabelSmoother(epsilon=0.1, chunk_bytes=chunk_bytes)
    assert same(ours({"logits": logits}, labels, shift_labels=True, **given), stock)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_another_device_are_copied_a_chunk_at_a_time(monkeypatch, dtype):
    copied = []

    def copy(tensor):
        copied.append(tensor.numel() * tensor.element_size())
        return tensor.clone()

    monkeypatch.setattr("mpsdiag.trainers.cpu_losses.to_cpu", copy)
    logits, labels = logits_and_labels((3, 20), 50, 0.3, 0, dtype)
    flat, targets = logits.view(-1, 50), labels.view(-1)
    assert same(cross_entropy(flat, targets, chunk_bytes=2_000), F.cross_entropy(flat, targets))
    stock = LabelSmoother()({"logits": logits}, labels.clone(), shift_labels=True)
    assert same(ChunkedLabelSmoother(chunk_bytes=2_000)({"logits": logits}, labels, shift_labels=True), stock)
    assert len(copied) >= 2
    assert max(copied) <= 2_000


@pytest.mark.parametrize("threads", [1, 2])
def test_equality_holds_for_long_batches_and_several_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # More rows than the 32768 from which on torch splits a sum over threads.
        logits, labels = logits_and_labels((4, 10_001), 11, 0.3, 0, torch.float32)
        for reduction in ("mean", "sum"):
            stock = F.cross_entropy(logits.view(-1, 11), labels.view(-1), reduction=reduction)
            ours = cross_entropy(logits.view(-1, 11), labels.view(-1), reduction=reduction, chunk_bytes=2**18)
            assert same(ours, stock)
        stock = LabelSmoother()({"logits": logits}, labels.clone(), shift_labels=True)
        assert same(ChunkedLabelSmoother(chunk_bytes=2**18)({"logits": logits}, labels, shift_labels=True), stock)
    finally:
        torch.set_num_threads(before)


def test_one_long_row_at_the_end_is_not_left_alone():
    """A single row of more than 32768 classes would be summed by several threads."""
    logits, labels = logits_and_labels((2, 4), 40_000, 0.0, 1, torch.float32)
    stock = LabelSmoother(epsilon=0.1)({"logits": logits}, labels.clone(), shift_labels=True)
    assert same(ChunkedLabelSmoother(chunk_bytes=1)({"logits": logits}, labels, shift_labels=True), stock)


def test_minus_infinity_in_another_class_is_harmless_and_nan_stays():
    logits, labels = logits_and_labels((6,), 5, 0.0, 0, torch.float32)
    logits[2, (labels[2] + 1) % 5] = -torch.inf
    assert same(cross_entropy(logits, labels, chunk_bytes=1), F.cross_entropy(logits, labels))
    assert cross_entropy(logits, labels).isfinite()
    logits[4, 0] = torch.nan
    assert cross_entropy(logits, labels, chunk_bytes=1).isnan()


def test_another_ignore_index_and_other_leading_axes():
    logits, labels = logits_and_labels((9,), 4, 0.0, 0, torch.float32)
    stock = F.cross_entropy(logits, labels, ignore_index=2)
    assert same(cross_entropy(logits, labels, ignore_index=2, chunk_bytes=1), stock)
    wide, labels = logits_and_labels((8, 6), 10, 0.2, 0, torch.float32)
    turned = wide.transpose(0, 1)
    stock = LabelSmoother(epsilon=0.2)({"logits": turned}, labels.T.clone(), shift_labels=False)
    assert same(ChunkedLabelSmoother(epsilon=0.2, chunk_bytes=64)({"logits": turned}, labels.T), stock)


@given(rows=st.integers(0, 500), per_chunk=st.integers(3, 60))
def test_chunks_cover_all_rows_in_order_without_a_lonely_last_one(rows, per_chunk):
    parts = chunks(rows, per_chunk)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) == sizes[0] <= per_chunk
    assert min(sizes) >= 2 or rows < 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_at_all(reduction):
    logits, labels = torch.empty(0, 5), torch.empty(0, dtype=torch.long)
    assert same(
        cross_entropy(logits, labels, reduction=reduction), F.cross_entropy(logits, labels, reduction=reduction)
    )


def test_a_chunk_holds_as_many_rows_as_its_bytes_allow():
    assert rows_per_chunk(classes=50_257, bytes_per_value=4, chunk_bytes=32 * 2**20) == 166
    assert rows_per_chunk(classes=10**9, bytes_per_value=4, chunk_bytes=1) == 3


def test_memory_stays_within_chunks(monkeypatch):
    """No tensor of the size of all logits is made on the way."""
    largest = 0
    stock = torch.log_softmax

    def spy(values, *args, **kwargs):
        nonlocal largest
        largest = max(largest, values.numel() * values.element_size())
        return stock(values, *args, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", spy)
    logits, labels = logits_and_labels((4, 33), 100, 0.0, 0, torch.float32)
    cross_entropy(logits.view(-1, 100), labels.view(-1), chunk_bytes=4_000)
    ChunkedLabelSmoother(chunk_bytes=4_000)({"logits": logits}, labels, shift_labels=True)
    assert 0 < largest <= 4_000
