"""Attacks, losses and certifiers of ours where a script of ART has its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks import EvasionAttack
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.preprocessor import FeatureSqueezing, LabelSmoothing
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerTRADESPyTorch, Trainer
from art.estimators.classification import PyTorchClassifier
from art.metrics import metrics
from art.utils import to_categorical
from support.attacked import cnn, mlp
from support.toys import Unbounded
from torch import Tensor, nn

import robust_plugins as rp

# An estimator's normalisation is a module of this package, and its run-time checks cannot be traced.
pytestmark = pytest.mark.usefixtures("unchecked")

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


def estimator(model: nn.Module | None = None, **options) -> PyTorchClassifier:
    model = mlp() if model is None else model
    options = {"preprocessing": (0.4, 0.5), "clip_values": (0.0, 1.0)} | options
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 4, optimizer=optimizer, **options)


@pytest.fixture
def data(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the decisions of the estimator on them."""
    return x.numpy(), estimator().predict(x.numpy()).argmax(1)


@pytest.mark.parametrize("name", ["rp:margin-pgd(steps=5)", "rp:fgsm", "art:pgd(steps=5)", "rp:square(queries=20)"])
@pytest.mark.parametrize("kind", [rp.Linf, rp.L2])
def test_what_it_generates_lies_in_the_ball_and_is_what_the_attack_finds(name, kind, data) -> None:
    x, y = data
    ball = kind(eps=0.2, clip=(0, 1))
    classifier = estimator()
    attack = rp.to_art(name, classifier, ball=ball, seed=3)
    assert isinstance(attack, EvasionAttack)
    found = attack.generate(x, y)
    assert found.dtype == np.float32
    assert found.shape == x.shape
    assert ball.contains(torch.from_numpy(found), torch.from_numpy(x)).all()
    direct = rp.attack(name)(classifier, torch.from_numpy(x), torch.from_numpy(y), ball, seed=3)
    assert np.array_equal(found, direct.x_adv.numpy())
    fooled = classifier.predict(found).argmax(1) != y
    assert np.array_equal(fooled, direct.success.numpy())  # ART sees the same success, its normalisation included


def test_labels_in_every_form_of_art(data) -> None:
    x, y = data
    attack = rp.to_art("rp:fgsm", estimator(), ball=BALL, seed=0)
    forms = [y, y.reshape(-1, 1), to_categorical(y, 4), None, list(y)]
    found = [attack.generate(x, form) for form in forms]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    with pytest.raises(rp.ArgumentError, match="one-hot rows of 4 classes"):
        attack.generate(x, np.full((len(x), 3), 0.5))


def test_targets_are_reached(data) -> None:
    x, y = data
    classifier = estimator()
    attack = rp.to_art(
        rp.attack("rp:margin-pgd", steps=20), classifier, ball=rp.Linf(eps=0.6, clip=(0, 1)), targeted=True
    )
    target = (y + 1) % 4
    assert (classifier.predict(attack.generate(x, target)).argmax(1) == target).all()
    assert (classifier.predict(attack.generate(x, y)).argmax(1) == y).all()  # what is reached already stays so
    with pytest.raises(rp.ArgumentError, match="the classes to reach"):
        attack.generate(x)


def test_seeds_come_from_where_those_of_art_do(data) -> None:
    x, y = data
    attack = rp.to_art("rp:square(queries=5)", estimator(), ball=BALL)
    found = []
    for seed in (1, 1, 2):
        np.random.seed(seed)  # noqa: NPY002 (the state that scripts of ART seed)
        found.append(attack.generate(x, y))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_parameters_are_set_as_in_art(data) -> None:
    x, y = data
    attack = rp.to_art("rp:fgsm", estimator(), ball=BALL)
    attack.set_params(eps=0.3, norm=2)
    assert (attack.ball, attack.eps, attack.norm) == (rp.L2(eps=0.3, clip=(0.0, 1.0)), 0.3, 2)
    attack.set_params(norm=np.inf, minimal=True)
    near = np.abs(attack.generate(x, y) - x).reshape(len(x), -1).max(1)
    attack.set_params(minimal=False)
    assert (near < np.abs(attack.generate(x, y) - x).reshape(len(x), -1).max(1) + 1e-6).all()
    assert (near < 0.2).any()
    assert "eps=0.3" in repr(attack)
    for wrong in ({"norm": 3}, {"targeted": 1}, {"ball": rp.Linf(eps=0.1, clip=(0, 255))}):
        with pytest.raises(rp.ArgumentError):
            attack.set_params(**wrong)
    with pytest.raises(ValueError, match="cannot be set"):
        attack.set_params(mask=1)


@pytest.mark.parametrize("name", ["rp:pdpgd(steps=5)", "rp:fmn(steps=5)", "foolbox:fmn(steps=5)"])
def test_what_looks_for_the_nearest_itself_is_asked_once(name, data) -> None:
    if name.startswith("foolbox"):
        pytest.importorskip("foolbox")
    x, y = data
    ball = rp.Linf(eps=0.4, clip=(0, 1))
    found = rp.to_art(name, estimator(), ball=ball, seed=3, minimal=True).generate(x, y)
    assert np.array_equal(found, rp.to_art(name, estimator(), ball=ball, seed=3).generate(x, y))
    bisected = rp.to_art("rp:pgd(steps=5)", estimator(), ball=ball, seed=3, minimal=True).generate(x, y)
    assert not np.array_equal(bisected, rp.to_art("rp:pgd(steps=5)", estimator(), ball=ball, seed=3).generate(x, y))


def test_the_model_is_left_as_found(data) -> None:
    x, y = data
    model = cnn().train()
    attack = rp.to_art("rp:margin-pgd(steps=3)", estimator(model), ball=BALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack.generate(x, y)
    rp.to_art("interval:ibp", estimator(model), ball=BALL).certify(x)
    assert all(module.training for module in model.modules() if module is not model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Whole(nn.Module):
    """What ART does not see the layers of: its TRADES trainer fails where a Sequential shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z)


@pytest.mark.parametrize("trainer", [AdversarialTrainer, AdversarialTrainerTRADESPyTorch])
def test_the_trainers_of_art_train_with_it(trainer, data) -> None:
    x, y = data
    x, y = np.repeat(x, 8, 0), to_categorical(np.repeat(y, 8), 4)
    classifier = estimator(Whole())
    attack = rp.to_art("rp:pgd(steps=5)", classifier, ball=BALL)
    before = metrics.adversarial_accuracy(classifier, x, y, attack_crafter=attack)
    options = {"ratio": 1.0} if trainer is AdversarialTrainer else {"beta": 1.0}
    trainer(classifier, attack, **options).fit(x, y, batch_size=24, nb_epochs=5)
    after = metrics.adversarial_accuracy(classifier, x, y, attack_crafter=attack)
    assert before < 0.6 < after


def test_the_metrics_of_art_take_it(data, monkeypatch) -> None:
    x, _ = data
    classifier = estimator()
    ball = rp.Linf(eps=0.5, clip=(0, 1))
    ours = {"class": lambda c: rp.to_art("rp:margin-pgd(steps=10)", c, ball=ball)}
    monkeypatch.setitem(metrics.SUPPORTED_METHODS, "margin", ours)
    found = metrics.empirical_robustness(classifier, x, "margin")
    single = metrics.empirical_robustness(classifier, x, "fgsm", {"eps_step": 0.01, "eps": 0.5})
    assert 0 < found <= single + 0.01  # the nearest example of many steps is nearer than that of one


def test_certificates_bound_the_metrics_of_art(data) -> None:
    x, y = data
    wrong = y.copy()
    wrong[:3] = (y[:3] + 1) % 4
    classifier = estimator()
    ball = rp.Linf(eps=0.01, clip=(0, 1))
    certified = rp.to_art("interval:crown", classifier, ball=ball)
    for attack in (ProjectedGradientDescent(classifier, eps=0.01, eps_step=0.003, verbose=False),
                   rp.to_art("rp:margin-pgd", classifier, ball=ball)):  # fmt: skip
        for labels in (None, y, wrong):
            reached = metrics.adversarial_accuracy(classifier, x, labels, attack_crafter=attack)
            assert 0 < certified.adversarial_accuracy(x, labels) <= reached
    classes, radii = certified.certify(x, tolerance=0.001)
    assert np.array_equal(classes, y)
    assert ((radii > 0) & (radii <= 0.01)).all()
    nearest = rp.to_art("rp:margin-pgd", classifier, ball=rp.Linf(eps=0.5, clip=(0, 1)), minimal=True)
    distances = np.abs(nearest.generate(x, y) - x).reshape(len(x), -1).max(1)
    assert (radii <= distances + 1e-6).all()
    proved = np.array([
        bool(rp.certifier("interval:crown")(classifier, torch.from_numpy(x[i : i + 1]), torch.tensor([y[i]]),
                                            rp.Linf(eps=float(radii[i]), clip=(0, 1))).certified)
        for i in range(len(x))
    ])  # fmt: skip
    assert proved.all()


def test_a_certifier_without_an_answer_gives_no_zero(data) -> None:
    x, y = data
    odd = estimator(nn.Sequential(mlp(), Unbounded()))
    certified = rp.to_art("interval:crown", odd, ball=BALL)
    with pytest.raises(rp.UnsupportedModelError, match="Unbounded"):
        certified.adversarial_accuracy(x)
    with pytest.raises(rp.UnsupportedModelError, match="Unbounded"):
        certified.certify(x)
    none_right = (y + 1) % 4
    assert np.isnan(rp.to_art("interval:ibp", estimator(), ball=BALL).adversarial_accuracy(x, none_right))


def test_a_loss_trains_an_estimator_with_its_normalisation(data) -> None:
    x, y = data
    x, y = np.repeat(x, 4, 0), np.repeat(y, 4)
    classifier = estimator(preprocessing_defences=[LabelSmoothing(0.9, apply_fit=True, apply_predict=False)])
    ball = rp.Linf(eps=0.05, clip=(0, 1))
    loss = rp.MixedLoss(
        worst="interval:ibp", gamma=0.5, ball=ball, schedule=rp.Ramp(start=0, end=9), task="classification"
    )
    certified = rp.to_art("interval:ibp", classifier, ball=ball)
    before = certified.adversarial_accuracy(x, y)
    trainer = rp.to_art(loss, classifier)
    assert isinstance(trainer, Trainer)
    record = trainer.fit(x, to_categorical(y, 4), batch_size=8, nb_epochs=12)
    assert len(record.epochs) == 12
    assert before < 0.5 < certified.adversarial_accuracy(x, y)
    assert trainer.get_classifier() is classifier


def test_there_and_back(data) -> None:
    attack = rp.attack("rp:fgsm")
    assert rp.from_art(rp.to_art(attack, estimator(), ball=BALL)) is attack


def test_what_it_cannot_take_is_refused_by_name() -> None:
    classifier, attack = estimator(), rp.attack("rp:fgsm")
    with pytest.raises(rp.ArgumentError, match="ball"):
        rp.to_art(attack, classifier)
    with pytest.raises(rp.ArgumentError, match="clip range"):
        rp.to_art(attack, classifier, ball=rp.Linf(eps=0.1, clip=(0, 255)))
    defended = estimator(preprocessing_defences=[FeatureSqueezing((0, 1), bit_depth=2, apply_predict=True)])
    with pytest.raises(rp.ArgumentError, match="FeatureSqueezing"):
        rp.to_art(attack, defended, ball=BALL)
    with pytest.raises(rp.ArgumentError, match="a PyTorchClassifier of ART"):
        rp.to_art(attack, mlp(), ball=BALL)
    with pytest.raises(rp.ArgumentError, match="targeted"):
        rp.to_art("interval:ibp", classifier, ball=BALL, targeted=True)
    with pytest.raises(rp.ArgumentError, match="a loss has its own"):
        rp.to_art(rp.recipe("madry", ball=BALL), classifier, ball=BALL)
    with pytest.raises(rp.ArgumentError, match="optimizer"):
        rp.to_art(rp.recipe("standard"), estimator_without_optimizer())
    with pytest.raises(rp.ArgumentError, match="component"):
        rp.to_art(nn.Linear(1, 1), classifier, ball=BALL)
    with pytest.raises(rp.UnknownNameError):
        rp.to_art("rp:nothing", classifier, ball=BALL)
    with pytest.raises(rp.ArgumentError, match="mask"):
        rp.to_art(attack, classifier, ball=BALL).generate(np.zeros((1, 1, 8, 8)), mask=np.ones(1))


def estimator_without_optimizer() -> PyTorchClassifier:
    return PyTorchClassifier(mlp(), nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0.0, 1.0))
