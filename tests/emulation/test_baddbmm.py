import pytest
import torch

from mpsdiag.emulation.mode import emulate_mps


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beta", [1, 0.5])
def test_baddbmm_with_another_beta_is_torchs_own(beta):
    before, a, b = normal(2, 3, 4), normal(2, 3, 5, seed=1), normal(2, 5, 4, seed=2)
    want = torch.baddbmm(before, a, b, beta=beta)
    with emulate_mps("2.13"):
        assert torch.equal(torch.baddbmm(before, a, b, beta=beta), want)


def test_every_way_to_baddbmm():
    nan, a, b = torch.full((1, 2, 2), float("nan")), normal(1, 2, 2), normal(1, 2, 2, seed=1)
    want = torch.bmm(a, b)
    with emulate_mps("2.13"):
        results = [
            torch.baddbmm(input=nan, batch1=a, batch2=b, beta=0),
            nan.baddbmm(a, b, beta=0),
            nan.clone().baddbmm_(a, b, beta=0),
            torch.baddbmm(nan, a, b, beta=0, out=torch.empty(1, 2, 2)),
        ]
        assert all(x.isnan().all() for x in results)
        assert torch.equal(torch.zeros(1, 2, 2).baddbmm(a, b, beta=0), want)
