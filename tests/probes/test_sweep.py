"""The sweep's combinations, and who has to answer for what it finds."""

from __future__ import annotations

import pytest
import torch

from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes import sweep
from mpsdiag.probes.declaration import Check, Finding
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import conclude, run_mode
from mpsdiag.probes.sweep import SWEEP_PROBE, Shape, attribute, explanation, shapes


def test_it_covers_what_the_catalogue_promises():
    assert set(sweep.HEAD_DIMS) == {32, 64, 80, 96, 128, 256}
    assert set(sweep.QUERIES) == {1, 4, 8, 9, 16, 128}
    assert set(sweep.KEYS) == {None, 64, 1024, 4096}
    assert len(list(shapes(sweep.KEYS))) == 6 * 6 * 4
    assert sweep.size() > 3500


def test_every_masked_shape_has_a_dead_row_and_a_live_one():
    for shape in shapes(sweep.KEYS):
        live = shape.mask().any(-1)
        assert live.shape == (2, 1, shape.queries)
        assert not live[0, 0, 0]
        assert live[1].all()


def test_layouts_that_would_be_alike_are_run_once():
    assert Shape(64, 8, 1024).layouts == ("contiguous", "transposed")
    assert Shape(64, 128, 4096).layouts == ("contiguous",)


def thin(monkeypatch, head_dims=(64,), queries=(1, 4, 16), keys=(None, 64)):
    monkeypatch.setattr(sweep, "HEAD_DIMS", head_dims)
    monkeypatch.setattr(sweep, "QUERIES", queries)
    monkeypatch.setattr(sweep, "KEYS", keys)


def swept(mode, emulation=None, backend=None):
    return run_mode(SWEEP_PROBE, mode, "cpu", emulation, backend=backend)


def test_each_combination_is_judged_once(monkeypatch):
    thin(monkeypatch)
    results = {mode: swept(mode) for mode in ("training", "evaluation")}
    names = [(check.name, check.mode) for result in results.values() for check in result.checks]
    assert len(set(names)) == len(names) == sweep.size()
    assert {result.status for result in results.values()} == {"pass"}


@pytest.mark.parametrize("release", ["2.4", "2.9", "2.12", "2.13", "2.14"])
def test_without_defects_no_release_is_off(monkeypatch, release):
    thin(monkeypatch, head_dims=(64, 80), keys=(None, 64, 1024))
    assert [check for check in swept("evaluation", Emulation(release, 26, ())).checks if not check.ok] == []


def test_the_leak_of_future_keys_is_off_in_causal_half_precision_only(monkeypatch):
    thin(monkeypatch)
    off = [check.at for check in swept("evaluation", Emulation("2.11", defects=("SDPA014",))).checks if not check.ok]
    assert off
    assert {at["mask"] for at in off} == {"causal"}
    assert {at["dtype"] for at in off} == {"bfloat16", "float16"}


AT = {"dtype": "float16", "layout": "transposed", "mask": "none", "head_dim": 64, "queries": 4, "keys": 64}
OFF = Check("combination", ok=False, seen="wrong values", at=AT)


def finding(name, status="fail", training="pass", evaluation="fail", failed=(), cases=10):
    return Finding(name, "title", status, "detail", training, evaluation, cases, tuple(failed))


def test_a_defect_explains_only_where_its_probe_failed_in_that_mode():
    assert explanation(OFF, [finding("SDPA002"), finding("SDPA001")]) == ("SDPA002",)
    assert explanation(OFF, [finding("SDPA002", "pass", evaluation="pass")]) == ()
    assert explanation(OFF, [finding("SDPA002", training="fail", evaluation="pass")]) == ()
    assert explanation(Check("aborted", ok=False, seen="aborts the process"), [finding("SDPA002")]) == ()


@pytest.mark.parametrize(
    ("probe", "change", "explained"),
    [
        ("SDPA001", {"mask": "bool"}, True),
        ("SDPA001", {"mask": "finfo.min"}, False),
        ("SDPA002", {}, True),
        ("SDPA002", {"layout": "contiguous"}, False),
        ("SDPA002", {"queries": 9}, False),
        ("SDPA002", {"head_dim": 80}, False),
        ("SDPA003", {"mask": "causal"}, False),
        ("SDPA004", {"keys": 1024}, True),
        ("SDPA004", {"keys": 1024, "dtype": "float32"}, False),
        ("SDPA014", {"mask": "causal"}, True),
        ("SDPA014", {"mask": "causal", "dtype": "float32"}, False),
        ("SDPA009", {}, None),
    ],
)
def test_what_each_defect_accounts_for(probe, change, explained):
    explains = CATALOGUE[probe].explains
    assert (None if explains is None else explains({**AT, **change})) is explained


def test_explained_failures_go_to_their_probe_and_the_sweep_passes():
    found = attribute(finding("SWEEP", failed=[OFF, OFF]), [finding("SDPA002"), finding("SDPA009")])
    assert [one.id for one in found] == ["SDPA002", "SDPA009", "SWEEP"]
    assert found[0].detail == "detail; the sweep shows it in 2 combinations"
    assert found[1].detail == "detail"
    assert (found[2].status, found[2].evaluation, found[2].failed) == ("pass", "pass", ())
    assert found[2].detail == "2 of 10 combinations wrong, all explained by SDPA002 (2)"


def test_what_nothing_explains_stays_and_is_named():
    other = Check("other", ok=False, seen="NaN", at={**AT, "head_dim": 80})
    *_, left = attribute(finding("SWEEP", training="fail", failed=[OFF, other]), [finding("SDPA002")])
    assert (left.status, left.training, left.evaluation) == ("fail", "pass", "fail")
    assert left.failed == (other,)
    assert "1 of them not explained by any failed probe (the others by SDPA002 (1)); other: NaN" in left.detail


@pytest.mark.parametrize("status", ["skip", "error", "pass"])
def test_a_sweep_that_did_not_fail_is_left_alone(status):
    sweep_finding = finding("SWEEP", status, evaluation=status)
    assert attribute(sweep_finding, [])[-1] is sweep_finding


def test_a_kernel_nobody_knows_is_reported(monkeypatch):
    thin(monkeypatch, head_dims=(80,), queries=(16,), keys=(64,))
    real = torch.nn.functional.scaled_dot_product_attention

    def off_by_a_little(query, *rest, **named):
        return real(query, *rest, **named) * (1.01 if query.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", off_by_a_little)
    results = {mode: swept(mode) for mode in ("training", "evaluation")}
    *_, left = attribute(conclude(SWEEP_PROBE, results, 0.0), [])
    assert left.status == "fail"
    assert {check.at["dtype"] for check in left.failed} == {"bfloat16"}
