"""The norm of gradients against plain float64, wherever and however they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aift_ray.parallel.dtensor_utils import clip_gradients, gradient_norm

SHAPES = [(4096,), (3, 4096), (1,), (5, 1001), (700, 900), (0,)]


def weights(scale: float = 1.0, shared: object = None) -> list[torch.Tensor]:
    """Weights with gradients of several shapes; in one of them numbers of very unlike size."""
    made = torch.Generator().manual_seed(0)
    found = []
    for number, shape in enumerate(SHAPES):
        grad = torch.randn(shape, generator=made) * scale
        if number == 3:
            grad = grad * torch.logspace(-6, 3, grad.numel()).view(shape)
        if shared:
            grad = distribute_tensor(grad, shared, [Shard(0)])  # type: ignore[arg-type]
        weight = torch.zeros_like(grad, requires_grad=True)
        weight.grad = grad
        found.append(weight)
    return found


def plain(parameters: list[torch.Tensor]) -> float:
    """The same in float64 throughout."""
    grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in parameters]
    return float(torch.cat([g.double().flatten() for g in grads]).norm())


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[object]:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


# squares of 1e25 and of 1e-25 are none of fp32's numbers
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e25, 1e-25])
def test_the_norm_is_that_of_float64(scale: float) -> None:
    parameters = weights(scale)
    assert float(gradient_norm(parameters)) == pytest.approx(plain(parameters), rel=1e-6, abs=0)


def test_the_same_of_shares(mesh: object) -> None:
    parameters = weights(shared=mesh)
    assert float(gradient_norm(parameters)) == pytest.approx(plain(parameters), rel=1e-6, abs=0)
    mixed = [*parameters, *weights(3.0)]
    assert float(gradient_norm(mixed)) == pytest.approx(plain(mixed), rel=1e-6, abs=0)


def test_what_is_no_number_stays_so() -> None:
    for wrong in (float("nan"), float("inf")):
        parameters = weights()
        assert parameters[4].grad is not None
        parameters[4].grad[17, 3] = wrong
        assert not torch.isfinite(gradient_norm(parameters))


@pytest.mark.parametrize("limit", [0.0, 1.0, 1e9])
def test_clipping_is_torchs(limit: float) -> None:
    own, torchs = weights(), weights()
    before = float(clip_gradients(own, limit))
    if limit:
        torch.nn.utils.clip_grad_norm_(torchs, limit)
    assert before == pytest.approx(plain(weights()), rel=1e-6)
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


class Doubles(TorchDispatchMode):
    """The most numbers in double precision that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype is torch.float64:
            self.most = max(self.most, result.numel())
        return result


def test_no_gradient_is_copied_to_double_precision() -> None:
    with Doubles() as seen:
        gradient_norm(weights())
    assert 0 < seen.most <= 700 * 900 / 4096 + 1
