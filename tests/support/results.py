"""Small results of every kind, from components in a few lines; `Plugin` of `support.toys` has to be registered."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.harness.result import Shown
from robust_plugins.testing.networks import mlp_case
from support.toys import Boxes, SignStep

COMPONENTS = ["toy:sign-step", "toy:boxes"]


class Fails(SignStep):
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        raise MemoryError("too large")


def made(name: str) -> Shown:
    """A small result of each kind."""
    torch.manual_seed(0)
    case = mlp_case(batch=30)
    asked = case.model, case.x, case.y
    wide = dataclasses.replace(case.ball, eps=4 * case.ball.radii)
    if name == "attack":
        return SignStep()(*asked, case.ball, seed=0)
    if name == "certificate":
        return Boxes()(*asked, case.ball)
    if name == "comparison":
        return rp.compare(*asked, case.ball, {"mine": "toy:sign-step", "broken": Fails(), "boxes": Boxes()}, seed=0)
    if name == "balls":
        return rp.compare(*asked, [case.ball, wide], COMPONENTS, seed=0)
    if name == "labels":
        labels = (case.model(case.x) > 0).long()
        return rp.compare(case.model, case.x, labels, case.ball, COMPONENTS, task="labels", seed=0)
    if name == "errors":
        return rp.compare(case.model, case.x, None, case.ball, COMPONENTS, task="regression", seed=0)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    few = plain, case.x[:3], plain(case.x[:3]).argmax(1)
    if name == "explanations":
        return rp.compare_explanations(
            *few, case.ball, ["gradient:corner-pgd(steps=2)", "interval:ibp"], delta=0.1, seed=0
        )
    if name == "radius":
        return rp.critical_radius(COMPONENTS, *asked, wide, seed=0)
    if name == "explanation attack":
        return rp.explanation_attack("gradient:corner-pgd(steps=2)")(*few, case.ball, seed=0)
    if name == "explanation certificate":
        return rp.explanation_certifier("interval:ibp")(*few, case.ball, delta=0.1)
    model, budget = nn.Linear(3, 2).double(), rp.PoisoningBudget(points=2, eps=0.01)
    x, y = torch.rand(40, 3).double(), torch.randint(2, (40,))
    training = {"loss": "cross_entropy", "optimizer": rp.SGD(lr=0.1), "epochs": 1, "progress": False}
    quick = "poison:random(count=2)"
    if name == "poisoning":
        return rp.poisoning_bracket(model, [(x, y)], budget, validation=(x, y), attacks=quick, **training)
    if name == "poisoning run":
        return rp.abstract_gradient_training(model, [(x, y)], budget, validation=(x, y), **training)
    if name == "poisoned trainings":
        training.pop("progress")
        return rp.poisoning_attack(quick)(model, [(x, y)], budget, seed=0, **training)
    if name == "poisoned learning":
        learner = lambda x, y: nn.Linear(3, 2).double()  # noqa: E731
        labels = rp.PoisoningBudget(labels=2)
        return rp.poison_and_train("poison:random", learner, x, y, labels, test=(x, y), partitions=2)
    if name == "private prediction":
        privacy = rp.PoisoningBudget.privacy(1)
        run = rp.abstract_gradient_training(model, [(x, y)], privacy, clip_gradient=0.1, **training)
        return run.private_prediction(x, 1.0, generator=torch.Generator().manual_seed(0))
    votes = rp.partition_aggregation(lambda x, y: nn.Linear(3, 2).double(), x, y, partitions=3, progress=False)
    return votes.certify(x, y)
