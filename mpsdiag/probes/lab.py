"""The tools of a trigger: seeded inputs on the device, one attention call, its check. Loads torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from mpsdiag import device as devices
from mpsdiag.emulation.mode import suspended
from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.declaration import Check, Mode, Refused, Skip
from mpsdiag.sdpa.float64 import Yardstick, plain_errors, reference_attention

REFUSALS: Final = ("no available kernel", "no viable backend", "invalid backend")


@contextmanager
def forced(backend: str | None) -> Iterator[None]:
    """Inside, attention runs on this backend; Refused if torch lacks it or it refuses the call."""
    if backend is None:
        yield
        return
    import warnings

    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not hasattr(SDPBackend, backend):
        raise Refused(f"this torch has no backend {backend}")
    try:
        # A refusal comes with a warning for each backend that was not requested.
        with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, backend)):
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as problem:
        if any(words in str(problem).lower() for words in REFUSALS):
            raise Refused(f"the backend {backend} does not support such calls") from problem
        raise


DIRECT: Final = "_scaled_dot_product_attention_math_for_mps"


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one CPU thread: the inputs are tiny, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Lab:
    """One device, real or emulated, in one grad mode; under an emulation the device is `cpu`.

    `backend` is the SDPA backend to force, a name of `torch.nn.attention.SDPBackend`; None leaves it to
    torch.
    """

    device: str
    emulation: Emulation | None = None
    mode: Mode = "evaluation"
    seed: int = 0
    backend: str | None = None

    @property
    def training(self) -> bool:
        """Whether gradients are required."""
        return self.mode == "training"

    @property
    def on_mps(self) -> bool:
        """Whether this is MPS, real or emulated."""
        return self.emulation is not None or devices.kind_of(self.device) == "mps"

    @property
    def release(self) -> tuple[int, int]:
        """The torch release whose kernels run."""
        major, minor, *_ = (self.emulation.release if self.emulation else torch.__version__).split(".")
        return int(major), int(minor)

    def require_real_mps(self, why: str) -> None:
        """Skip, with this reason, everywhere but on a real Apple GPU."""
        if self.emulation is not None or devices.kind_of(self.device) != "mps":
            raise Skip(why)

    def require_mps(self, why: str) -> None:
        """Skip, with this reason, everywhere but on MPS, real or emulated."""
        if not self.on_mps:
            raise Skip(why)

    def require_evaluation(self) -> None:
        """Skip if the sequence is too long for training."""
        if self.training:
            raise Skip("the gradients of so long a sequence need more memory than most machines have")

    def require_memory(self, size: int) -> None:
        """Skip if the Apple GPU offers less memory, in bytes; an emulation needs none."""
        if self.emulation is None and (offered := torch.mps.recommended_max_memory()) < size:
            raise Skip(f"needs {size >> 30} GiB of GPU memory, but this machine offers {offered / 2**30:.0f}")

    def each_dtype(self, *names: str) -> Iterator[str]:
        """Give one dtype after the other; skip at the first that the device does not support."""
        for name in names:
            self.require_dtype(name)
            yield name

    def require_dtype(self, dtype: str) -> None:
        """Skip if the device does not support this dtype."""
        reason = devices.supports_dtype(self.device, dtype)
        if reason is not None:
            raise Skip(reason)

    def randn(self, *shape: int, dtype: str = "float32", stream: int = 0) -> Tensor:
        """Draw normal values on the device."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + stream)
        return torch.randn(*shape, generator=generator).to(devices.torch_dtype(dtype)).to(self.device)

    def qkv(
        self, query: tuple[int, ...], key: tuple[int, ...] | None = None, *, dtype: str = "float32"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw query, key and value on the device; key and value have the shape `key`, or that of the query."""
        other = key or query
        return (
            self.randn(*query, dtype=dtype, stream=1),
            self.randn(*other, dtype=dtype, stream=2),
            self.randn(*other, dtype=dtype, stream=3),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **rest: Any) -> Tensor:
        """Run `F.scaled_dot_product_attention` in this mode; the output comes back to the CPU, detached.

        In training the gradients of query, key and value are left on them, as a training step would.
        """
        for tensor in (query, key, value):
            tensor.requires_grad_(self.training)
            tensor.grad = None
        with torch.set_grad_enabled(self.training), forced(self.backend):
            output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, **rest)
            if not self.training:
                return output.cpu()
            # Of a scalar: handing over a gradient makes torch import sympy, which takes longer than the probe.
            output.sum().backward()  # type: ignore[no-untyped-call]  # in torch
        return output.detach().cpu()

    def direct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **rest: Any) -> Tensor:
        """Call the MPS operation itself, which takes boolean masks to the kernels; without gradients."""
        self.require_mps("the operation exists on MPS only")
        if self.release < (2, 5):
            raise Skip("torch below 2.5 has no MPS attention operation")
        # By name: unlike the public function, this one passes a boolean mask to the kernels.
        operator = getattr(torch.ops.aten, DIRECT)
        with torch.no_grad():
            output: Tensor = operator(query, key, value, mask, **rest)[0]
        return output.detach().cpu()

    def yardstick(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Yardstick:
        """Compute the float64 reference and the contract's bound on the CPU, outside any emulation."""
        q, k, v = (tensor.detach().cpu() for tensor in (query, key, value))
        m = None if mask is None else mask.detach().cpu()
        with suspended(), torch.no_grad():
            reference = reference_attention(q, k, v, m, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
            errors = plain_errors(reference, q, k, v, m, rows=rows, is_causal=is_causal, scale=scale)
            return Yardstick.of(reference, q.dtype, errors)

    def check(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        call: Callable[..., Tensor] | None = None,
        **rest: Any,
    ) -> Check:
        """Compute attention and check the output, and in training that the gradients are finite."""
        output = (call or self.attend)(query, key, value, mask, **rest)
        yardstick = self.yardstick(query, key, value, mask, rows=rows, **rest)
        made = self.judged(name, output, yardstick, rows)
        return self.with_gradients(made, query, key, value) if call is None else made

    def judged(
        self,
        name: str,
        output: Tensor,
        yardstick: Yardstick,
        rows: Tensor | None = None,
        at: Mapping[str, Any] | None = None,
    ) -> Check:
        """Check an output of this mode; with `rows`, a boolean (..., L), only those rows."""
        with self.control():
            ok, seen, error = yardstick.judge(output, rows)
        return Check(name, ok, seen, self.mode, error, yardstick.bound, at)

    def with_gradients(self, made: Check, *leaves: Tensor) -> Check:
        """The check, failed if this is training and a gradient is missing or not finite."""
        with self.control():
            gradients = [leaf.grad for leaf in leaves] if made.ok and self.training else []
            if any(gradient is None or not bool(torch.isfinite(gradient).all()) for gradient in gradients):
                return replace(made, ok=False, seen="NaN gradients")
        return made

    @contextmanager
    def control(self) -> Iterator[None]:
        """Inside, CPU tensors are plain CPU tensors without gradients, for computing the expected result."""
        with suspended(), torch.no_grad():
            yield
