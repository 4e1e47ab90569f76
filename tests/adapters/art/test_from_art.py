"""Any evasion attack of ART behind the common interface, as a class or as a configured object."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier
from support.attacked import cnn, decisions, mlp
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing import attack_checks

STEPS: dict[str, Any] = {"eps_step": 0.03, "max_iter": 5}
GRADIENT = [
    (evasion.FastGradientMethod, {}),
    (evasion.BasicIterativeMethod, STEPS),
    (evasion.MomentumIterativeMethod, STEPS),
    (evasion.AutoProjectedGradientDescent, STEPS | {"nb_random_init": 1, "loss_type": "cross_entropy"}),
    (evasion.ProjectedGradientDescentNumpy, STEPS),
]
OTHER = [
    (evasion.DeepFool, {"max_iter": 5}),
    (evasion.SquareAttack, {"max_iter": 20}),
    (evasion.CarliniL2Method, {"max_iter": 3, "binary_search_steps": 2, "initial_const": 1.0}),
    (evasion.HopSkipJump, {"max_iter": 2, "max_eval": 40, "init_eval": 20, "init_size": 20}),
    (evasion.AutoAttack, {}),
]
IDS = [method.__name__ for method, _ in GRADIENT + OTHER]


@pytest.mark.parametrize(("method", "parameters"), GRADIENT + OTHER, ids=IDS)
@pytest.mark.parametrize("norm", [rp.Linf, rp.L2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_common_contract(
    x: Tensor, method: type, parameters: dict[str, Any], norm: type[rp.Ball], dtype: torch.dtype
) -> None:
    if method is evasion.AutoAttack:
        parameters = {"attacks": [configured(evasion.AutoProjectedGradientDescent, **STEPS, nb_random_init=1)]}
    model, x = cnn(dtype).train(), x[:4].to(dtype)
    y = decisions(model, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    ball = norm(eps=0.2, clip=(0, 1))
    attack = rp.from_art(method, **parameters)
    with torch.no_grad():
        first, again = (attack(model, x, y, ball, seed=3) for _ in range(2))
    assert ball.contains(first.x_adv, x).all()
    assert torch.equal(first.x_adv, again.x_adv)
    assert first.x_adv.dtype == dtype
    clean = nn.functional.cross_entropy(cnn(dtype).eval()(x), y, reduction="none")
    assert (first.loss > clean).any()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None and p.dtype == dtype for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", attack_checks)
@pytest.mark.parametrize(
    ("method", "parameters"), [GRADIENT[0], GRADIENT[3], OTHER[0]], ids=["fgm", "apgd", "deepfool"]
)
def test_conformance(check: Callable[[rp.Attack], None], method: type, parameters: dict[str, Any]) -> None:
    check(rp.from_art(method, **parameters))


@pytest.mark.parametrize(("method", "parameters"), GRADIENT, ids=IDS[: len(GRADIENT)])
def test_radius_norm_and_target_come_from_the_call(x: Tensor, method: type, parameters: dict[str, Any]) -> None:
    model = mlp()
    y = decisions(model, x)
    target = (y + 1) % 4
    attack = rp.from_art(method, **parameters)
    small, large = (attack(model, x, y, rp.Linf(eps=e, clip=(0, 1)), seed=0) for e in (0.05, 0.2))
    assert (small.distance <= 0.05 + 1e-6).all()
    assert (large.distance > 0.1).any()
    aimed = attack(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), target=target, seed=0)
    assert (aimed.loss < nn.functional.cross_entropy(model(x), target, reduction="none")).any()


@pytest.mark.parametrize("method", [evasion.FastGradientMethod, evasion.AutoProjectedGradientDescent])
def test_per_sample_radii_are_attacked_in_groups(x: Tensor, method: type) -> None:
    model = mlp()
    y = decisions(model, x)
    parameters = {} if method is evasion.FastGradientMethod else {"max_iter": 3, "nb_random_init": 1}
    attack = rp.from_art(method, **parameters)
    mixed = attack(model, x, y, rp.Linf(eps=[0.0, 0.1, 0.2] * 4, clip=(0, 1)), seed=0)
    assert torch.equal(mixed.x_adv[::3], x[::3])
    if method is evasion.FastGradientMethod:
        for index, eps in ((1, 0.1), (2, 0.2)):
            alone = attack(model, x[index::3], y[index::3], rp.Linf(eps=eps, clip=(0, 1)), seed=0)
            torch.testing.assert_close(mixed.x_adv[index::3], alone.x_adv)


def configured(method: type, **parameters: Any) -> Any:
    """An object of ART that was built for another network, of other shapes."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    estimator = PyTorchClassifier(
        other, nn.CrossEntropyLoss(), (6,), 3, clip_values=(-5.0, 5.0), preprocessing=(9.0, 9.0), device_type="cpu"
    )
    return method(estimator, **parameters)


def test_a_configured_object_keeps_its_parameters_and_is_not_touched(x: Tensor) -> None:
    theirs = configured(
        evasion.ProjectedGradientDescent, norm=2, eps=7.0, eps_step=0.02, max_iter=3, num_random_init=1, decay=0.5
    )
    before = dict(vars(theirs)), dict(vars(theirs._attack))
    attack = rp.from_art(theirs)
    given = {"eps_step": 0.02, "max_iter": 3, "num_random_init": 1, "decay": 0.5, "batch_size": 32, "random_eps": False}
    assert attack == rp.from_art(evasion.ProjectedGradientDescent, **given)
    model = mlp()
    y = decisions(model, x)
    ball = rp.Linf(eps=0.05, clip=(0, 1))
    result = attack(model, x, y, ball, seed=0)
    assert (vars(theirs), vars(theirs._attack)) == before
    assert ball.contains(result.x_adv, x).all()
    assert (result.distance > 0.03).all()  # three steps of .02 in the ball's norm
    tuned = rp.from_art(theirs, max_iter=1)
    assert dict(tuned.parameters)["max_iter"] == 1  # type: ignore[attr-defined]


def test_methods_of_a_configured_object_do_not_lead_back_to_its_model(x: Tensor) -> None:
    """A configured Square attack keeps its own method as its loss, bound to the old estimator."""
    theirs = configured(evasion.SquareAttack, max_iter=10)
    model = cnn()
    y = decisions(model, x)
    result = rp.from_art(theirs)(model, x, y, rp.Linf(eps=0.3, clip=(0, 1)), seed=0)
    assert result.success.any()


def test_it_is_art_that_runs(x: Tensor) -> None:
    model = mlp().eval()
    y = decisions(model, x)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0, 1), device_type="cpu")
    expected = evasion.FastGradientMethod(estimator, eps=0.1).generate(x.numpy(), y.numpy())
    found = rp.from_art(evasion.FastGradientMethod)(mlp(), x, y, rp.Linf(eps=0.1, clip=(0, 1)))
    torch.testing.assert_close(found.x_adv, torch.from_numpy(expected), rtol=0, atol=1e-7)


def test_two_classes(x: Tensor) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    y = decisions(model, x)
    # DeepFool goes just past the boundary; with its usual overshoot of 1e-6, rounding may take that back.
    for method, parameters in [*GRADIENT, (evasion.DeepFool, {"max_iter": 5, "epsilon": 0.02})]:
        result = rp.from_art(method, **parameters)(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), seed=0)
        assert result.success.any(), method


def test_configuration_is_data() -> None:
    attack = rp.from_art(evasion.DeepFool, nb_grads=3, max_iter=20)
    assert attack == rp.from_art(evasion.DeepFool, max_iter=20, nb_grads=3)
    assert hash(attack) == hash(rp.from_art(evasion.DeepFool, max_iter=20, nb_grads=3))
    assert attack != rp.from_art(evasion.DeepFool, max_iter=21, nb_grads=3)
    assert repr(attack) == "ArtAttack(DeepFool(max_iter=20, nb_grads=3))"


def test_unusable_arguments() -> None:
    for thing in (PoisoningAttackBackdoor, int, 3, "art:pgd"):
        with pytest.raises(rp.ArgumentError, match=r"`attack` is .*a class of art\.attacks\.evasion"):
            rp.from_art(thing)  # type: ignore[arg-type]
    with pytest.raises(rp.UnknownNameError, match=r"DeepFool: 'max_itr'.*Did you mean 'max_iter'"):
        rp.from_art(evasion.DeepFool, max_itr=3)
    for name in ("eps", "norm", "targeted", "estimator"):
        with pytest.raises(rp.ArgumentError, match=f"`{name}` is given.*Leave `{name}` out"):
            rp.from_art(evasion.ProjectedGradientDescent, **{name: 1})
    theirs = configured(evasion.DeepFool)
    del theirs.epsilon
    with pytest.raises(rp.ArgumentError, match="a DeepFool whose `epsilon` cannot be read"):
        rp.from_art(theirs)


def test_what_art_refuses_is_one_clear_error(x: Tensor) -> None:
    model = cnn()
    y = decisions(model, x)
    unit = rp.Linf(eps=0.1, clip=(0, 1))
    with pytest.raises(rp.ArgumentError, match=r"DeepFool has no targeted form"):
        rp.from_art(evasion.DeepFool)(model, x, y, unit, target="random")
    with pytest.raises(rp.ArgumentError, match=r"HopSkipJump.*refuses: ValueError: Norm order"):
        rp.from_art(evasion.HopSkipJump)(model, x, y, rp.L1(eps=0.1, clip=(0, 1)))
    with pytest.raises(rp.ArgumentError, match=r"SquareAttack.*refuses.*give the ball one"):
        rp.from_art(evasion.SquareAttack)(model, x, y, rp.Linf(eps=0.1, clip=None))
    with pytest.raises(rp.ArgumentError, match=r"eps_step.*refuses: ValueError"):
        rp.from_art(evasion.BasicIterativeMethod, eps_step=-1.0)(model, x, y, unit)


def test_attacks_that_take_one_sample_at_a_time_are_given_one() -> None:
    model, flat = nn.Linear(5, 3), torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    y, ball = decisions(model, flat), rp.Linf(eps=0.1, clip=(0, 1))
    zoo = {"max_iter": 2, "use_resize": False, "use_importance": False, "nb_parallel": 2}
    assert ball.contains(rp.from_art(evasion.ZooAttack, **zoo)(model, flat, y, ball).x_adv, flat).all()
    with pytest.raises(rp.ArgumentError, match=r"ZooAttack.*batch_size=1\.$"):
        rp.from_art(evasion.ZooAttack, batch_size=2, **zoo)(model, flat, y, ball)


def test_the_model_stays_in_this_process() -> None:
    with pytest.raises(rp.ArgumentError, match="`parallel_pool_size` is 2"):
        rp.from_art(evasion.AutoAttack, parallel_pool_size=2)
    assert rp.from_art(evasion.AutoAttack, parallel_pool_size=0)


def test_without_art(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art.attacks", None)
    with pytest.raises(rp.PluginError, match=r"pip install 'robust_plugins\[art\]'"):
        rp.from_art(evasion.DeepFool)


def test_inputs_that_art_leaves_alone_keep_every_digit(x: Tensor) -> None:
    """ART computes in float32; what it does not move must not be rounded to it."""
    half = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, dtype=torch.float64))
    with torch.no_grad():
        half[1].weight[:, :32] = 0
    x = x.double() + 1e-12 * (x < 0.5)
    result = rp.from_art(evasion.FastGradientMethod)(half, x, decisions(half, x), rp.Linf(eps=0.1, clip=None))
    assert torch.equal(result.x_adv.flatten(1)[:, :32], x.flatten(1)[:, :32])
    assert (result.x_adv.flatten(1)[:, 32:] != x.flatten(1)[:, 32:]).all()


def test_art_cannot_reach_the_model(x: Tensor) -> None:
    from robust_plugins.adapters.art.estimator import Shielded

    model = cnn(torch.float64).train()
    shielded = Shielded(model, x.double()).eval().half()
    assert not list(shielded.parameters())
    assert all(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert shielded(x).dtype == torch.float32


def test_generators_of_art_are_seeded_only_inside() -> None:
    from robust_plugins.adapters.art.estimator import reproducible

    original = np.random.RandomState
    np.random.seed(0)  # noqa: NPY002
    with reproducible():
        first = np.random.RandomState().rand()
        assert isinstance(original(), np.random.RandomState)
        assert np.random.RandomState(5).rand() == original(5).rand()
        np.random.seed(0)  # noqa: NPY002
        assert np.random.RandomState().rand() == first
    assert np.random.RandomState is original


@pytest.mark.parametrize("configured_first", [False, True])
def test_the_ensemble_of_two_classes(x: Tensor, configured_first: bool) -> None:
    """Its loss of logit ratios divides by the third best logit, which two classes do not have."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    y = decisions(model, x)
    ball = rp.Linf(eps=0.5, clip=(0, 1))
    attack = rp.from_art(configured(evasion.AutoAttack) if configured_first else evasion.AutoAttack)
    result = attack(model, x, y, ball, seed=0)
    assert result.success.all()
    assert ball.contains(result.x_adv, x).all()
    ratios = configured(evasion.AutoProjectedGradientDescent, loss_type="difference_logits_ratio")
    with pytest.raises(rp.ArgumentError, match="each of its attacks needs 3 classes"):
        rp.from_art(evasion.AutoAttack, attacks=[ratios])(model, x, y, ball, seed=0)
    with pytest.raises(rp.ArgumentError, match="'difference_logits_ratio' needs 3 classes"):
        rp.from_art(ratios)(model, x, y, ball, seed=0)


def test_nothing_that_art_prints_is_shown_unless_asked_for(
    x: Tensor, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    model, y, ball = mlp(), torch.zeros(12, dtype=torch.int64), rp.L2(eps=0.1, clip=(0, 1))
    parts = [configured(evasion.AutoProjectedGradientDescent, **STEPS, nb_random_init=1)]
    attacks = [
        rp.from_art(evasion.DeepFool, max_iter=1),
        rp.from_art(evasion.AutoAttack, attacks=parts),
        rp.from_art(configured(evasion.AutoAttack, attacks=parts)),
        rp.from_art(Talkative),
        rp.attack("art:pgd", steps=1),
    ]
    caplog.clear()  # of what ART logs while it is configured, which is not ours to silence
    for attack in attacks:
        attack(model, x, y, ball)
        assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("art")]
    assert logging.getLogger("art").level == logging.NOTSET
    rp.from_art(evasion.DeepFool, max_iter=1, verbose=True)(model, x, y, ball)
    assert "DeepFool" in capfd.readouterr().err
    rp.from_art(Talkative, verbose=True)(model, x, y, ball)
    assert capfd.readouterr().out == "one more step\n"
    assert "one more line" in caplog.text


class Talkative(evasion.FastGradientMethod):  # type: ignore[misc]
    """An attack that prints, draws and logs whatever it is told."""

    def __init__(self, estimator: Any, verbose: bool = True) -> None:
        super().__init__(estimator)

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        from tqdm import tqdm

        print("one more step")
        logging.getLogger("art.attacks.evasion").warning("one more line")
        return np.stack(list(tqdm(x)))
