"""FGSM, BIM and PGD: what they promise, through the public call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.attacked import cnn, decisions, mlp
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.registry import backends
from robust_plugins.registry.information import Status

NAMES = ["art:fgsm", "art:bim", "art:pgd"]
NORMS = [rp.Linf, rp.L2, rp.L1]


def attack(name: str, **parameters: object) -> rp.Attack:
    quick = {} if name == "art:fgsm" else {"steps": 5}
    return rp.attack(name, **(quick | parameters))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [(0.0, 1.0), None, (-np.inf, np.inf), (0.0, np.inf)])
@pytest.mark.parametrize("eps", [0.3, [0.0, 0.1, 0.5] * 4])
def test_attacks_do_damage_inside_the_ball(
    model: nn.Module, x: Tensor, name: str, norm: type[rp.Ball], clip: tuple[float, float] | None, eps: object
) -> None:
    y = decisions(model, x)
    ball = norm(eps=eps, clip=clip)
    result = attack(name)(model, x, y, ball, seed=0)
    assert ball.contains(result.x_adv, x).all()
    assert (result.distance <= ball.eps_for(x).flatten() + 1e-6).all()
    clean = nn.functional.cross_entropy(model.eval()(x), y, reduction="none")
    raised = (result.loss > clean)[ball.eps_for(x).flatten() > 0]
    # An L1 step moves one coordinate, and does nothing where that one is at the end of the clip range.
    assert raised.any() if norm is rp.L1 else raised.all()
    assert torch.equal(result.x_adv[ball.eps_for(x).flatten() == 0], x[ball.eps_for(x).flatten() == 0])


def test_fgsm_is_one_step_of_size_eps_along_the_sign(x: Tensor) -> None:
    model = mlp().eval()
    y = decisions(model, x)
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
    result = rp.attack("art:fgsm")(model, x, y, rp.Linf(eps=0.1, clip=(0, 1)))
    torch.testing.assert_close(result.x_adv, (x + 0.1 * gradient.sign()).clamp(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_approached(model: nn.Module, x: Tensor, name: str) -> None:
    y = decisions(model, x)
    target = (y + 1) % 4
    before = nn.functional.cross_entropy(model.eval()(x), target, reduction="none")
    result = attack(name)(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), target=target, seed=0)
    assert (result.loss < before).all()
    if name != "art:fgsm":
        assert result.success.any()
    assert torch.equal(result.success, result.logits.argmax(1) == target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("norm", NORMS)
def test_float64_is_kept_and_used(x: Tensor, name: str, build: object, norm: type[rp.Ball]) -> None:
    model = build(torch.float64)  # type: ignore[operator]
    x = x.double() + 1e-12 * (x > 0.5)  # lost in float32
    y = decisions(model, x)
    ball = norm(eps=1e-9, clip=None)
    result = attack(name)(model, x, y, ball, seed=0)
    assert result.x_adv.dtype == result.loss.dtype == torch.float64
    assert (result.distance > 1e-10).all()
    assert (result.distance <= 1e-9 + 1e-15).all()
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_success_is_against_y_and_not_the_clean_decision(model: nn.Module, x: Tensor, name: str) -> None:
    wrong = (decisions(model, x) + 1) % 4  # every sample is misclassified before it is attacked
    result = attack(name)(model, x, wrong, rp.Linf(eps=0.001, clip=(0, 1)), seed=0)
    assert result.success.all()


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_left_as_found(model: nn.Module, x: Tensor, name: str) -> None:
    y = decisions(model, x)
    model.train()
    model[1].eval()  # type: ignore[index]
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0) if p.requires_grad else None
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    original = x.clone()
    with torch.no_grad():
        attack(name)(model, x, y, rp.L2(eps=0.3, clip=(0, 1)), seed=0)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all((p.grad == 7.0).all() if p.requires_grad else p.grad is None for p in model.parameters())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert numpy_state == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(x, original)
    assert x.grad is None


@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_seeds_decide_the_start(x: Tensor, start: str) -> None:
    model = mlp()
    y = decisions(model, x)
    run = attack("art:pgd", steps=1, step_size=1e-4, start=start)
    first, again, other = (run(model, x, y, rp.Linf(eps=0.3, clip=(0, 1)), seed=s) for s in (0, 0, 1))
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.x_adv, other.x_adv) == (start == "none")


@pytest.mark.parametrize(("start", "least", "most"), [("uniform", 0.0, 0.01), ("gaussian", 0.28, 0.36), ("none", 0, 0)])
def test_a_third_of_the_gaussian_start_lies_on_the_boundary(x: Tensor, start: str, least: float, most: float) -> None:
    """A normal draw exceeds one standard deviation, which is eps, with probability .317."""
    model = mlp()
    run = attack("art:pgd", steps=1, step_size=1e-7, start=start)
    x = x.expand(12, 20, 8, 8).flatten(0, 1).unsqueeze(1)
    result = run(model, x, decisions(model, x), rp.Linf(eps=0.3, clip=None), seed=0)
    moved = (result.x_adv - x).abs()[result.distance > 0.01]
    on_boundary = (moved > 0.2999).float().mean().item() if len(moved) else 0.0
    assert least <= on_boundary <= most


def test_bim_starts_at_x(x: Tensor) -> None:
    model = mlp()
    y = decisions(model, x)
    ball = rp.Linf(eps=0.1, clip=(0, 1))
    bim, pgd = (rp.attack(name, steps=7)(model, x, y, ball) for name in ("art:bim", "art:pgd(start='none')"))
    assert torch.equal(bim.x_adv, pgd.x_adv)


def test_the_default_step_reaches_the_boundary_from_anywhere(x: Tensor) -> None:
    model = mlp()
    y = decisions(model, x)
    ball = rp.Linf(eps=0.1, clip=None)
    explicit, default = (rp.attack("art:pgd", steps=10, step_size=s)(model, x, y, ball, seed=0) for s in (0.025, None))
    assert torch.equal(explicit.x_adv, default.x_adv)


class Valley(nn.Module):
    """Class 0 loses between .03 and .05 above the start alone, and its loss peaks there; further on it wins again."""

    def forward(self, z: Tensor) -> Tensor:
        up = z.flatten(1)[:, 0] - 0.5
        margin = torch.where(up < 0.04, 0.03 - up, 3 * (up - 0.05))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_the_best_iterate_is_kept_not_the_last() -> None:
    x, y = torch.full((2, 1), 0.5), torch.zeros(2, dtype=torch.long)
    # From .5 in steps of .034: up to .534 (a success), then .568 (none, and the loss is below that of x).
    ball = rp.Linf(eps=0.1, clip=(0, 1))
    result = rp.attack("art:bim", steps=2, step_size=0.034)(Valley(), x, y, ball)
    assert result.success.all()
    torch.testing.assert_close(result.x_adv, torch.full((2, 1), 0.534))
    assert Valley()(torch.full((2, 1), 0.568)).argmax(1).tolist() == [0, 0]


@pytest.mark.parametrize("eps", [0.15, [0.05, 0.2] * 6])
def test_restarts_keep_the_best_of_all(x: Tensor, eps: object) -> None:
    model = mlp()
    y = decisions(model, x)
    ball = rp.Linf(eps=eps, clip=(0, 1))
    one, many = (attack("art:pgd", steps=2, restarts=r)(model, x, y, ball, seed=0) for r in (1, 6))
    assert (many.success | ~one.success).all()
    assert (many.loss >= one.loss)[many.success == one.success].all()
    assert (many.loss > one.loss).any()
    assert ball.contains(many.x_adv, x).all()


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_shapes(name: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    for shape in [(5, 12), (5, 3, 4), (5, 1, 3, 4), (5, 2, 1, 3, 2)]:
        x = torch.rand(shape)
        y = torch.arange(5, dtype=torch.int32) % 3
        eps = [0.1, 0.2, 0.3, 0.0, 0.4]
        result = attack(name, batch_size=2)(model, x, y, rp.L2(eps=eps, clip=(0, 1)), seed=0)
        assert result.x_adv.shape == x.shape
        empty = attack(name)(model, x[:0], y[:0], rp.Linf(eps=0.1, clip=(0, 1)))
        assert empty.x_adv.shape == (0, *shape[1:])


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("art:pgd", {"steps": 0}, "`steps` is 0"),
        ("art:bim", {"steps": 2.5}, "`steps` is 2.5"),
        ("art:pgd", {"step_size": 0.0}, "`step_size` is 0.0"),
        ("art:bim", {"step_size": float("nan")}, "`step_size` is nan"),
        ("art:pgd", {"restarts": 0}, "`restarts` is 0"),
        ("art:pgd", {"restarts": 2, "best": False}, "`restarts` is 2 with best=False"),
        ("art:pgd", {"start": "corner"}, "`start` is 'corner'.*'gaussian'"),
        ("art:pgd", {"start": "none", "restarts": 2}, "`restarts` is 2 with start='none'"),
        ("art:fgsm", {"batch_size": 0}, "`batch_size` is 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_unusable_parameters(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(rp.ArgumentError, match=message):
        rp.attack(name, **parameters)


@pytest.mark.parametrize("name", NAMES)
def test_exported_models_of_one_batch_size(x: Tensor, name: str) -> None:
    built = mlp().eval()
    exported = torch.export.export(built, (x,)).module()
    y = decisions(built, x)
    ball = rp.Linf(eps=0.2, clip=(0, 1))
    plain, same = (attack(name)(model, x, y, ball, seed=0) for model in (built, exported))
    torch.testing.assert_close(same.x_adv, plain.x_adv)


def test_configuration_is_data() -> None:
    run = rp.attack("art:pgd(steps=10, restarts=2)")
    assert run == rp.attack("art:pgd", steps=10, restarts=2)
    assert hash(run) == hash(rp.attack("art:pgd", steps=10, restarts=2))
    parameters = "batch_size=None, steps=10, step_size=None, relative_step=None, restarts=2, start='uniform', best=True"
    assert repr(run) == f"PGD({parameters}, loss='cross_entropy')"


def test_steps_in_units_of_eps(x: Tensor) -> None:
    """They are those in input units, for one radius and for a radius of each sample."""
    model = mlp().eval()
    y = decisions(model, x)
    eps = torch.linspace(0.05, 0.2, len(x)).tolist()
    relative = rp.attack("art:pgd", steps=5, relative_step=0.5)
    for radii in ([0.1] * len(x), eps):
        whole = relative(model, x, y, rp.Linf(eps=radii, clip=(0, 1)), seed=0)
        default = rp.attack("art:pgd", steps=5)(model, x, y, rp.Linf(eps=radii, clip=(0, 1)), seed=0)
        torch.testing.assert_close(whole.x_adv, default.x_adv)  # which are 2.5 / 5
    one, same = rp.attack("art:pgd", steps=5, step_size=0.03), rp.attack("art:pgd", steps=5, relative_step=0.3)
    ball = rp.Linf(eps=0.1, clip=(0, 1))
    torch.testing.assert_close(one(model, x, y, ball, seed=0).x_adv, same(model, x, y, ball, seed=0).x_adv)
    for wrong in ({"relative_step": 0.0}, {"relative_step": 0.3, "step_size": 0.1}):
        with pytest.raises(rp.ArgumentError, match="relative_step"):
            rp.attack("art:pgd", **wrong)


def test_without_art_the_attacks_are_listed_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "importable", lambda module: module != "art")
    assert {info.status for info in rp.attacks() if info.name in NAMES} == {Status.BACKEND_MISSING}
    with pytest.raises(rp.PluginError, match=r"needs art.*pip install 'robust_plugins\[art\]'"):
        rp.attack("art:pgd")


def test_the_last_iterate_is_that_of_a_loop_by_hand(x: Tensor) -> None:
    model = mlp().eval()
    y, ball = decisions(model, x), rp.Linf(eps=0.1, clip=(0, 1))
    run = rp.attack("art:pgd", steps=3, step_size=0.04, start="none", best=False)
    z = x
    for _ in range(3):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
        z = torch.minimum(torch.maximum(z + 0.04 * gradient.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(run(model, x, y, ball, seed=0).x_adv, z)
    torch.testing.assert_close(run.search(model, x, y, ball), z)


def test_a_search_is_the_call_without_the_comparison(model: nn.Module, x: Tensor) -> None:
    y, ball = decisions(model, x), rp.Linf(eps=0.1, clip=(0, 1))
    flags = [(m.training, m) for m in model.modules()]
    state = torch.get_rng_state()
    found = rp.attack("art:pgd", steps=4).search(model, x, y, ball, seed=3)
    assert torch.equal(found, rp.attack("art:pgd", steps=4)(model, x, y, ball, seed=3).x_adv)
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        m.training == was and all(p.grad is None and p.requires_grad for p in m.parameters()) for was, m in flags
    )
    with pytest.raises(rp.ArgumentError, match="clip range"):
        rp.attack("art:pgd", steps=4).search(model, x + 2, y, ball)
