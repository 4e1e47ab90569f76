"""Bounds by windows of coefficients are those by whole images, hold, and are made in the memory that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.image_networks import KINDS, image_network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from robust_plugins.explanations.bounds.adjoint import Adjoint
from robust_plugins.explanations.bounds.joint_gates import gradient_interval
from robust_plugins.intervals import Interval, Relaxation, crown, trace
from robust_plugins.intervals.methods.window_steps import WindowSteps
from robust_plugins.intervals.windows import Windows


def whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowSteps, "starts", lambda *_: False)


def distance(one: Sequence[Interval], two: Sequence[Interval]) -> float:
    """The largest difference of two lists of intervals, each relative to the largest number of its node."""
    return max(
        max(float((i.lower - j.lower).abs().max()), float((i.upper - j.upper).abs().max())) / float(j.magnitude.max())
        for i, j in zip(one, two, strict=True)
    )


def around(x: Tensor, eps: float) -> Interval:
    return Interval(x - eps, x + eps)


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        *((kind, torch.float64, 1e-12) for kind in KINDS),
        ("plain", torch.float32, 1e-5),
        ("grouped", torch.float32, 1e-5),
    ],
)
def test_windows_give_the_bounds_of_whole_images_in_chunks_of_any_size(
    kind: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = image_network(kind, dtype)
    network, box = trace(model, x), around(x, 0.02)
    with torch.no_grad():
        by_windows, in_pieces = crown(network, box), crown(network, box, memory=2**22)
        alone = [crown(network, box[i : i + 1]) for i in range(len(x))]
        whole_images(monkeypatch)
        expected = crown(network, box)
        pieces = crown(network, box, memory=2**22)
    assert distance(by_windows, expected) < tolerance
    assert distance(in_pieces, expected) < tolerance
    assert distance(pieces, expected) < tolerance
    assert distance([Interval.cat(parts) for parts in zip(*alone, strict=True)], expected) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_gradients_give_the_bounds_of_whole_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "stopped":
        pytest.skip("the pooling's gradient has no rule here")
    model, x = image_network(kind)
    network = trace(model, x)

    def bounds() -> Interval:
        values = crown(network, around(x, 0.02))
        start = Interval.point(torch.eye(3, dtype=x.dtype)[:2])
        return gradient_interval(network, values, Adjoint.of(network, values), start, (), 2**30)

    with torch.no_grad():
        by_windows = bounds()
        whole_images(monkeypatch)
        assert distance([by_windows], [bounds()]) < 1e-12


def test_a_window_that_keeps_what_lies_outside_of_the_image_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = image_network("stopped")  # where a convolution follows another one directly
    network, box = trace(model, x), around(x, 0.02)
    with torch.no_grad():
        right = crown(network, box)
        monkeypatch.setattr(Windows, "within", lambda w, image: w)
        assert distance(crown(network, box), right) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-4, 0.05])
def test_no_output_that_ascent_finds_lies_outside(kind: str, eps: float) -> None:
    model, x = image_network(kind)
    with torch.no_grad():
        values = crown(trace(model, x), around(x, eps), entries="bent")
    reached = attacked(model, x, eps)
    slack = 1e-12 * float(values[-1].magnitude.max())
    assert bool(values[-1].contains(reached, tolerance=slack).all())
    # The bounds are of the size of what is reached, so that wrong ones would be noticed.
    assert bool((values[-1].width < 30 * (reached.amax(0) - reached.amin(0))).all())


def attacked(model: torch.nn.Module, x: Tensor, eps: float) -> Tensor:
    """Outputs at corners and at points found by ascent on each output in both directions: (points, batch, outputs)."""
    found = [model(x + eps * (2 * torch.rand_like(x) - 1).sign()).detach() for _ in range(20)]
    for output in range(3):
        for sign in (1, -1):
            z = x.clone()
            for _ in range(5):
                z.requires_grad_()
                (grad,) = torch.autograd.grad(sign * model(z)[:, output].sum(), z)
                z = (x + ((z - x).detach() + eps / 2 * grad.sign()).clamp(-eps, eps)).detach()
                found.append(model(z).detach())
    return torch.stack(found)


def test_entries_that_are_not_needed_stay_as_they_are() -> None:
    model, x = image_network("plain")
    network, box = trace(model, x), around(x, 0.05)
    with torch.no_grad():
        propagated, every = network.forward(box), crown(network, box)
        relaxation = Relaxation(network, [*every[:8], propagated[8], *every[9:]])
        needed = torch.rand(propagated[8].shape) < 0.3
        needed[1] = False
        found = relaxation.sharpened(8, needed)
    assert torch.equal(found.lower[~needed], propagated[8].lower[~needed])
    assert (
        distance(
            [Interval(found.lower[needed], found.upper[needed])],
            [Interval(every[8].lower[needed], every[8].upper[needed])],
        )
        < 1e-12
    )
    assert bool((found.lower > propagated[8].lower)[needed].any())


@pytest.mark.parametrize(("kind", "share"), [("grouped", 1e-9), ("stopped", 1e-9), ("crossed", 1e-3)])
def test_bounds_by_windows_have_the_gradients_of_those_by_whole_images(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = image_network(kind)
    weight = next(model.parameters())

    def gradient() -> Tensor:
        width = crown(trace(model, x), around(x, 0.02))[-1].width.sum()
        return torch.autograd.grad(width, weight)[0]

    by_windows = gradient()
    whole_images(monkeypatch)
    found = gradient()
    # Where a line touches tanh is searched for, and a constant of the gradient, which rounding moves.
    assert float((by_windows - found).abs().max()) <= share * float(found.abs().max())


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = WeakTensorKeyDictionary()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.alive[t] = (t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
        self.most = max(self.most, sum(dict(self.alive.values()).values()))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("windows", [True, False])
def test_memory_is_kept(windows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = image_network("stopped", torch.float32)
    network, box = trace(model, x), around(x, 0.02)
    with torch.no_grad():
        values = crown(network, box)[:8]
    if not windows:
        whole_images(monkeypatch)
    peaks = []
    for memory in (2**10, 2**20, 2**22):
        with torch.no_grad(), Peak() as peak:
            Relaxation(network, values, memory=memory).sharpened(7, torch.rand(2, 4, 5, 5) < 0.5)
        peaks.append(peak.most)
    least, some, many = peaks  # the least is one row, and all that is no coefficient
    assert some < least + 2**20
    assert least + 2**19 < many < least + 2**22
