"""The quick steps are ART's own, to the bit; and without private methods the attack is the same."""

from __future__ import annotations

import art
import pytest
import torch
from support.attacked import decisions, mlp
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.art import steps
from robust_plugins.adapters.art.steps import ascent

EPS, STEP, STEPS = 0.1, 0.03, 8

release = tuple(int(part) for part in art.__version__.split(".")[:2])
private = pytest.mark.skipif(
    not steps.TESTED[0] <= release < steps.TESTED[1], reason=f"ART {art.__version__} takes the public way"
)


def stock(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, targeted: bool, norm: float, steps: int) -> Tensor:
    """What ART itself returns after `steps` from `start`, with `start - x` in the place of its random draw."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 4, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        estimator, norm, EPS, STEP, max_iter=steps, targeted=targeted, num_random_init=1, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projected_gradient_descent_pytorch, "random_sphere", lambda *_: (start - x).flatten(1).numpy())
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


@private
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", [rp.Linf, rp.L2, rp.L1])
def test_every_iterate_is_that_of_art(model: nn.Module, x: Tensor, norm: type[rp.Ball], targeted: bool) -> None:
    model.eval()
    ball = norm(eps=EPS, clip=(0, 1))
    y = torch.arange(12) % 4
    # As ART draws it, and such that x + (start - x) is start again.
    start = (x + (ball.sample(x, 1, torch.Generator().manual_seed(5))[0] - x)).clamp(0, 1)
    start = torch.where(x + (start - x) == start, start, x)
    step = ascent(model, x, y, ball, step_size=STEP, targeted=targeted)
    z, moved = start, False
    for count in range(1, STEPS + 1):
        before, (z, logits) = z, step(z)
        torch.testing.assert_close(logits, model(before), rtol=0, atol=0)
        expected = stock(model, x, y, start, targeted=targeted, norm=ball.norm, steps=count)
        assert torch.equal(z, expected), f"step {count} differs by {(z - expected).abs().max():.2g}"
        moved |= not torch.equal(z, start)
    assert moved


@private
def test_per_sample_radii_are_each_those_of_a_scalar(model: nn.Module, x: Tensor) -> None:
    model.eval()
    y = torch.arange(12) % 4
    eps = [0.02, 0.1] * 6
    step = ascent(model, x, y, rp.Linf(eps=eps, clip=(0, 1)), step_size=tuple(0.3 * e for e in eps), targeted=False)
    mixed, _ = step(step(x)[0])
    for index, e in enumerate((0.02, 0.1)):
        single = ascent(model, x, y, rp.Linf(eps=e, clip=(0, 1)), step_size=0.3 * e, targeted=False)
        alone, _ = single(single(x)[0])
        assert torch.equal(mixed[index::2], alone[index::2])


@private
@pytest.mark.parametrize("norm", [rp.Linf, rp.L2, rp.L1])
@pytest.mark.parametrize("eps", [EPS, [0.0, 0.1, 0.2] * 4])
@pytest.mark.parametrize("targeted", [False, True])
def test_other_releases_go_through_public_methods(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor, norm: type[rp.Ball], eps: object, targeted: bool
) -> None:
    ball = norm(eps=eps, clip=(0, 1))
    y = torch.arange(12) % 4
    target = (y + 1) % 4 if targeted else None
    attack = rp.attack("art:pgd", steps=5)
    quick = attack(model, x, y, ball, seed=0, target=target)
    monkeypatch.setattr("art.__version__", "1.99.0")
    monkeypatch.setattr(steps, "_private", None)
    slow = attack(model, x, y, ball, seed=0, target=target)
    assert slow.success.tolist() == quick.success.tolist()
    # The same steps but for rounding; and our projection onto the L1 ball is exact, where ART rescales.
    torch.testing.assert_close(slow.loss, quick.loss, rtol=1e-2 if norm is rp.L1 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [rp.Linf, rp.L2, rp.L1])
def test_public_methods_lose_nothing_of_float64(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, norm: type[rp.Ball]
) -> None:
    monkeypatch.setattr("art.__version__", "1.18.2")
    model, x = mlp(torch.float64), x.double()
    result = rp.attack("art:bim", steps=3)(model, x, decisions(model, x), norm(eps=1e-9, clip=None))
    assert (result.distance > 1e-10).all()


@pytest.mark.parametrize("version", [art.__version__, "1.99.0"])
def test_a_model_that_cannot_be_differentiated(monkeypatch: pytest.MonkeyPatch, x: Tensor, version: str) -> None:
    monkeypatch.setattr("art.__version__", version)

    class Detached(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.detach().flatten(1)[:, :3]

    with pytest.raises(rp.ArgumentError, match="not differentiable in its input"):
        rp.attack("art:pgd")(Detached(), x, torch.zeros(12, dtype=torch.long), rp.Linf(eps=0.1, clip=(0, 1)))


def test_gradients_may_share_memory(x: Tensor) -> None:
    """A sum's gradient is one number seen many times, which no operation can change in place."""

    class Sum(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            total = 0.01 * z.flatten(1).sum(1)
            return torch.stack([total, -total], 1)

    y = torch.zeros(12, dtype=torch.long)
    for name in ("art:fgsm", "art:pgd"):
        for ball in (rp.Linf(eps=0.1, clip=None), rp.L2(eps=0.1, clip=None), rp.L1(eps=0.1, clip=None)):
            result = rp.attack(name)(Sum(), x, y, ball, seed=0)
            assert (result.distance > 0).all()
