"""An estimator of ART as a model: the same answers as ART's on the same samples, and what it cannot stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.postprocessor import ReverseSigmoid
from art.defences.preprocessor import GaussianAugmentation, SpatialSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
from art.preprocessing.standardisation_mean_std import StandardisationMeanStd
from support.attacked import cnn, mlp
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.art.model import Normalised

pytestmark = pytest.mark.usefixtures("unchecked")  # an estimator is no torch.nn.Module, which is what types say

UNIT = (0.0, 1.0)


def estimator(
    model: nn.Module, shape: tuple[int, ...], *, classes: int = 4, clip: Any = UNIT, kind: Any = PyTorchClassifier,
    **more: Any,
) -> Any:  # fmt: skip
    return kind(model, nn.CrossEntropyLoss(), shape, classes, clip_values=clip, device_type="cpu", **more)


def colours() -> nn.Module:
    """A network of images with three channels, on inputs of mean 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()


def features() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def vector(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


CASES = {
    "scalar": (features, (5,), (0.45, 0.25)),
    "feature": (features, (5,), (vector([0.1, 0.9, 0.5, 0.4, 0.3]), vector([0.2, 0.1, 0.4, 1.0, 0.3]))),
    "image": (colours, (3, 8, 8), (0.5, 0.25)),
    "channel": (colours, (3, 8, 8), (vector([0.2, 0.5, 0.8]), vector([0.3, 0.1, 0.2]))),
    "shaped": (colours, (3, 8, 8), (vector([0.2, 0.5, 0.8]).reshape(3, 1, 1), vector([1, 2, 3]).reshape(3, 1, 1))),
    "numpy": (features, (5,), StandardisationMeanStd(mean=0.5, std=0.1)),
    "identity": (features, (5,), (0.0, 1.0)),
    "none": (features, (5,), None),
}


def batch(shape: tuple[int, ...], n: int = 24) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_art_does(name: str) -> None:
    build, shape, preprocessing = CASES[name]
    theirs, x = estimator(build(), shape, preprocessing=preprocessing), batch(shape)
    logits = torch.from_numpy(theirs.predict(x.numpy()))
    y = logits.argmax(1)
    y[::6] = (y[::6] + 1) % 4  # wrong for the network, so clean is below 1
    ball = rp.Linf(eps=0.02, clip=UNIT)
    pgd = ProjectedGradientDescent(theirs, eps=0.02, eps_step=0.005, max_iter=10, verbose=False)
    after = pgd.generate(x.numpy(), np.eye(4)[y])
    accuracy = float((theirs.predict(after).argmax(1) == y.numpy()).mean())
    attack = rp.from_art(pgd)
    certifier = rp.certifier("interval:ibp")
    table = rp.compare(theirs, x, y, ball, [attack, "art:pgd(steps=10)", certifier], seed=0)
    assert table.clean == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert table.rows[0].accuracy == pytest.approx(accuracy, abs=1 / len(x))
    torch.testing.assert_close(attack(theirs, x, y, ball, seed=0).x_adv, torch.from_numpy(after), atol=1e-6, rtol=0)
    assert table.crossings == ()
    torch.testing.assert_close(certifier(theirs, x, y, ball).logits, logits)
    moved = torch.from_numpy(theirs.predict(after))
    assert certifier.bounds(theirs, x, ball).contains(moved, tolerance=1e-4).all()
    if name in ("none", "identity"):
        return
    bare = rp.compare(theirs.model, x, y, ball, [attack], seed=0)  # another model, which is said and not attacked
    assert bare.rows[0].accuracy is None
    assert "the bare network of the estimator" in bare.rows[0].error


def test_every_public_call_takes_it() -> None:
    theirs, x = estimator(features(), (5,), preprocessing=(0.5, 0.25)), batch((5,), 4)
    ours = Normalised(theirs.model, torch.full((1, 1), 0.5), torch.full((1, 1), 0.25))
    y, ball = ours(x).argmax(1), rp.Linf(eps=0.02, clip=UNIT)
    for component in ("interval:crown", "lirpa:crown"):
        (a, b) = (rp.certifier(component)(m, x, y, ball) for m in (theirs, ours))
        torch.testing.assert_close(a.margin, b.margin)
        assert a.verdicts == b.verdicts
    spec = rp.margin_spec(y, 4, dtype=x.dtype)
    certifier = rp.certifier("interval:ibp")
    assert torch.equal(certifier.lower_bounds(theirs, x, ball, spec), certifier.lower_bounds(ours, x, ball, spec))
    pgd = rp.attack("art:pgd", steps=3)
    assert torch.equal(pgd.search(theirs, x, y, ball, seed=0), pgd.search(ours, x, y, ball, seed=0))
    components = ["gradient:corner-pgd(corners=4, steps=2, restarts=1, rung=1)", "interval:ibp"]
    found = [rp.compare_explanations(m, x, y, ball, components, seed=0) for m in (theirs, ours)]
    torch.testing.assert_close(*(f.value for f in found))
    torch.testing.assert_close(*(f.deviation.certified for f in found))


def test_attributions_and_scores_take_it() -> None:
    theirs, x = estimator(features(), (5,), preprocessing=(0.5, 0.25)), batch((5,), 4)
    ours = Normalised(theirs.model, torch.full((1, 1), 0.5), torch.full((1, 1), 0.25))
    y, ball = ours(x).argmax(1), rp.Linf(eps=0.02, clip=UNIT)
    torch.testing.assert_close(*(rp.explain.Saliency(m).attribute(x, target=y) for m in (theirs, ours)))
    bounds = [rp.explain.Saliency(m).certify(x, target=y, ball=ball) for m in (theirs, ours)]
    torch.testing.assert_close(bounds[0].upper, bounds[1].upper)
    scores = [rp.Scores(x=x, y=y, ball=ball)(m) for m in (theirs, ours)]
    assert scores[0] == scores[1]


def test_it_is_left_as_found() -> None:
    theirs, x = estimator(features().train(), (5,), preprocessing=(0.5, 0.25)), batch((5,), 4)
    before = dict(vars(theirs)), {k: v.clone() for k, v in theirs.model.state_dict().items()}
    rp.compare(theirs, x, torch.zeros(4).long(), rp.Linf(eps=0.1, clip=UNIT), ["art:pgd(steps=2)", "interval:ibp"])
    assert vars(theirs) == before[0]
    assert theirs.model.training
    assert all(torch.equal(v, before[1][k]) for k, v in theirs.model.state_dict().items())


class Halved(PreprocessorPyTorch):  # type: ignore[misc]
    """A defence that nobody knows, for training alone unless told otherwise."""

    def __init__(self, apply_predict: bool = False) -> None:
        super().__init__(is_fitted=True, apply_fit=True, apply_predict=apply_predict)
        self._device = torch.device("cpu")

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return x / 2, y


class Own(PyTorchClassifier):  # type: ignore[misc]
    def predict(self, x: np.ndarray, **kwargs: Any) -> np.ndarray:
        predicted: np.ndarray = 1 - super().predict(x, **kwargs)
        return predicted


class Reversed(nn.Sequential):
    """ART runs a Sequential layer by layer, and never calls this."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"preprocessing_defences": Halved(apply_predict=True)}, "the defence Halved"),
        (
            {"preprocessing_defences": [SpatialSmoothing(window_size=3)], "preprocessing": (0.5, 0.5)},
            "SpatialSmoothing",
        ),
        ({"postprocessing_defences": ReverseSigmoid()}, "the defence ReverseSigmoid"),
        ({"kind": Own}, "a Own of ART"),
        ({"model": Reversed(nn.Linear(5, 4))}, "whose own forward ART does not call"),
        ({"preprocessing": (0.5, 0.0)}, "divides by 0.0"),
        ({"preprocessing": (vector([1, 2, 3]), vector([1, 2, 3]))}, r"normalises inputs of shape \(5,\)"),
    ],
    ids=["own", "known", "post", "subclass", "sequential", "zero", "shape"],
)
def test_what_it_cannot_stand_for_is_refused_by_name(more: dict[str, Any], named: str) -> None:
    theirs = estimator(**({"model": features(), "shape": (5,)} | more))
    x, ball = batch((5,), 4), rp.Linf(eps=0.1, clip=UNIT)
    with pytest.raises(rp.ArgumentError, match=named):
        rp.compare(theirs, x, torch.zeros(4).long(), ball, ["interval:ibp"])
    if "defences" in next(iter(more)):
        with pytest.raises(rp.ArgumentError, match=named):
            rp.from_art(FastGradientMethod(theirs))


@pytest.mark.parametrize("defence", [Halved(), GaussianAugmentation()], ids=["own", "known"])
def test_a_defence_for_training_alone_is_no_part_of_the_model(defence: Any) -> None:
    theirs, x = estimator(features(), (5,), preprocessing_defences=defence), batch((5,), 4)
    y = torch.from_numpy(theirs.predict(x.numpy()).argmax(1))
    assert rp.compare(theirs, x, y, rp.Linf(eps=0.0, clip=UNIT), []).clean == 1


def test_other_estimators_and_other_things_are_refused() -> None:
    black = BlackBoxClassifier(lambda x: np.eye(4)[x.argmax(1) % 4], (5,), 4)
    x, y, ball = batch((5,), 4), torch.zeros(4).long(), rp.Linf(eps=0.1, clip=UNIT)
    with pytest.raises(rp.ArgumentError, match="a BlackBoxClassifier of ART"):
        rp.compare(black, x, y, ball, ["interval:ibp"])
    for thing in (3, torch.sin, None):
        with pytest.raises(rp.ArgumentError, match=r"accepted: a torch\.nn\.Module, or a PyTorchClassifier"):
            rp.certifier("interval:ibp")(thing, x, y, ball)


@pytest.mark.parametrize(("theirs", "ours"), [(UNIT, None), (UNIT, (0, 255)), ((0.1, 0.9), UNIT), ((0, 1), (0, 0.99))])
def test_the_clip_ranges_must_agree(theirs: Any, ours: Any) -> None:
    made, x = estimator(features(), (5,), clip=theirs), batch((5,), 4) * 0.5
    with pytest.raises(rp.ArgumentError, match="for an estimator of ART with the clip values"):
        rp.compare(made, x, torch.zeros(4).long(), rp.Linf(eps=0.1, clip=ours), [])


@pytest.mark.parametrize(("theirs", "ours"), [(None, UNIT), (None, None), ((0.1, 0.9), (0.1, 0.9))])
def test_the_same_clip_range_is_accepted(theirs: Any, ours: Any) -> None:
    made, x = estimator(features(), (5,), clip=theirs), 0.2 + batch((5,), 4) / 2
    assert rp.compare(made, x, torch.zeros(4).long(), rp.Linf(eps=0.1, clip=ours), []).clean is not None


def test_images_of_one_channel(x: Tensor) -> None:
    for network in (mlp(), cnn()):
        theirs = estimator(network.eval(), (1, 8, 8), preprocessing=(0.13, 0.31))
        y = torch.from_numpy(theirs.predict(x.numpy()).argmax(1))
        table = rp.compare(theirs, x, y, rp.Linf(eps=0.02, clip=UNIT), ["art:fgsm", "interval:ibp"], seed=0)
        assert table.clean == 1
        assert table["interval:ibp"].accuracy is not None
