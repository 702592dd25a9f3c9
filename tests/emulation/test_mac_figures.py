"""Numbers that owners of Macs printed, from the inputs they gave."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.mode import emulate_mps

operator = torch.ops.aten._scaled_dot_product_attention_math_for_mps


class TestFiguresFromMacs:
    def error(self, release, macos, call, dtype=torch.float32, **more):
        want = scaled_dot_product_attention(*call, **more)
        with emulate_mps(release, macos):
            got = scaled_dot_product_attention(*(x.to(dtype) for x in call), **more)
        return (got.float() - want).abs().max().item()

    @pytest.mark.parametrize(
        ("release", "macos", "printed", "digits"),
        [("2.11", 26, 4.14, 2), ("2.12", 26, 4.14, 2), ("2.13", 26, 0.011, 3), ("2.14", 26, 0.0085, 4)],
    )
    def test_pytorch_195910_causal_leak(self, release, macos, printed, digits):
        torch.manual_seed(0)
        call = [torch.randn(1, 4, 64, 64) for _ in range(3)]
        assert round(self.error(release, macos, call, torch.bfloat16, is_causal=True), digits) == printed

    @pytest.mark.parametrize("release", ["2.5", "2.6", "2.7", "2.8"])
    def test_pytorch_156707_dead_row_with_grad_mode_on(self, release):
        q, k, v = (torch.randn(1, 1, 2, 4) for _ in range(3))
        mask = torch.tensor([[[[False, False], [True, True]]]])
        assert torch.is_grad_enabled()
        with emulate_mps(release):
            output = scaled_dot_product_attention(q, k, v, mask)
        assert output[0, 0, 0].isnan().all()
        assert output[0, 0, 1].isfinite().all()

    def test_pytorch_181133_batch_stride(self):
        torch.manual_seed(0)
        call = [torch.randn(84, 3, 3, 64).permute(0, 2, 1, 3) for _ in range(3)]
        assert round(self.error("2.11", 15, call), 3) == 3.618
        assert self.error("2.11", 15, [x.contiguous() for x in call]) < 1e-6

    def test_pytorch_184180_mask_offset(self):
        torch.manual_seed(0)
        q = torch.randn(2, 4, 8, 64)
        mask = torch.zeros(2, 1, 8, 8)
        mask[0, 0, 4:, :4] = float("-inf")
        want = scaled_dot_product_attention(q, q, q, mask)
        with emulate_mps("2.12"):
            got = operator(q, q, q, mask == 0)[0]
        assert (got - want).abs().max().item() == pytest.approx(0.0961458683013916, abs=1e-6)

    def test_pytorch_165961_float16_of_256(self):
        x = torch.full((1, 32, 23, 80), 256.0, dtype=torch.half)
        with emulate_mps("2.10"):
            assert not scaled_dot_product_attention(x, x, x).isnan().any()
