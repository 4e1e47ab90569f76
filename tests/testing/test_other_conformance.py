"""The conformance checks of what is neither attack nor certifier: built-in components pass, and broken ones do not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.explanations.task import Task
from robust_plugins.intervals import Interval
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry
from robust_plugins.testing import (
    abstract_training,
    abstract_training_checks,
    command_checks,
    conformance,
    data_and_models,
    dataset_checks,
    explanation_attack_checks,
    explanation_attacks,
    fresh_registry,  # noqa: F401 (a fixture)
    interval_rule_checks,
    interval_rules,
    model_checks,
    recipe_checks,
    recipes,
)

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize("check", explanation_attack_checks)
def test_the_explanation_attack_passes(check) -> None:
    check(rp.explanation_attack("gradient:corner-pgd", corners=5, steps=2, restarts=0))


@pytest.mark.parametrize("check", recipe_checks)
@pytest.mark.parametrize("name", ["standard", "madry(steps=2)", "trades(steps=2)", "ibp"])
def test_recipes_pass(name, check) -> None:
    check(partial(rp.recipe, name))


@pytest.mark.parametrize("check", dataset_checks)
@pytest.mark.parametrize("name", ["digits", "moons"])
def test_data_sets_pass(name, check) -> None:
    check(partial(rp.dataset, name))


@pytest.mark.parametrize("check", model_checks)
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_networks_pass(name, check) -> None:
    check(partial(rp.model, name))


@pytest.mark.parametrize("check", abstract_training_checks)
@pytest.mark.parametrize("domain", ["box", pytest.param("zonotope", marks=pytest.mark.slow)])
def test_abstract_training_passes(domain, check) -> None:
    check(partial(rp.abstract_gradient_training, domain=domain, progress=False))


@pytest.mark.parametrize("check", interval_rule_checks)
@pytest.mark.parametrize(
    "layer", [nn.Tanh(), nn.LeakyReLU(0.1), nn.LayerNorm(4)], ids=lambda layer: type(layer).__name__
)
def test_interval_rules_pass(layer, check) -> None:
    check(layer, (4,))


@dataclass(frozen=True, kw_only=True)
class Idle(rp.ExplanationAttack):
    """Looks nowhere."""

    def search(self, task: Task) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Unseeded(rp.ExplanationAttack):
    def search(self, task: Task) -> None:
        draw = torch.Generator()
        draw.seed()
        task.offer(task.ball.sample(task.x, 1, draw)[0])


class Shrinking(nn.Module):
    """Half of its input; a rule that knows a third of it is too tight."""

    def forward(self, z: Tensor) -> Tensor:
        return z.div(2.0)


def broken_rules(fault: str) -> object:
    class Plugin:
        @rp.hookimpl
        def register_interval_rules(self, register) -> None:
            def forward(layer: nn.Module, x: Interval) -> Interval:
                half = Interval(x.lower / 2, x.upper / 2)
                tight = Interval(half.center - 0.9 * half.radius, half.center + 0.9 * half.radius)
                return {"tight": tight, "loose": Interval(half.lower - 1, half.upper + 1)}.get(fault, half)

            def backward(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
                return grad * (0.3 if fault == "gradient" else 0.5)

            register(Shrinking, forward=forward, backward=backward)

    return Plugin()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("tight", interval_rules.bounds_contain_the_ball),
        ("loose", interval_rules.point_is_exact),
        ("gradient", interval_rules.gradients_contain_the_ball),
    ],
)
def test_wrong_rules_are_caught(fault, check, fresh_registry) -> None:  # noqa: F811
    rp.register(broken_rules("none"), "right")
    check(Shrinking(), (4,))
    rp.unregister("right")
    with pytest.raises(AssertionError, match="no rules"):
        interval_rules.has_rules(Shrinking(), (4,))
    rp.register(broken_rules(fault), "wrong")
    with pytest.raises((AssertionError, rp.RobustPluginsError)):  # the engine sees some of it by itself
        check(Shrinking(), (4,))


def detached(*, ball: rp.Ball, epochs: int, **shared) -> rp.MixedLoss:
    class Detached(rp.MixedLoss):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return super().__call__(model, x, y).detach().requires_grad_()

    return Detached(worst=None, gamma=1.0, ball=None, **shared)


def reversed_sign(*, ball: rp.Ball, epochs: int, **shared) -> rp.MixedLoss:
    class Reversed(rp.MixedLoss):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            loss = super().__call__(model, x, y)
            return loss + 2 * (loss.detach() - loss)

    return Reversed(worst=None, gamma=1.0, ball=None, **shared)


DIGITS = partial(rp.dataset, "digits")


def repeated() -> rp.Dataset:
    data = DIGITS()
    return replace(data, x_test=data.x_train[:100], y_test=data.y_train[:100])


def drawn() -> rp.Dataset:
    data = DIGITS()
    return replace(data, x_train=(data.x_train + 0.01 * torch.rand_like(data.x_train)).clamp(0, 1))


class OfTheBatch(nn.Module):
    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, classes)

    def forward(self, z: Tensor) -> Tensor:
        z = z.flatten(1)
        return self.layer(z - z.mean(0))


def of_the_batch(*, input_shape, classes: int) -> nn.Module:
    return OfTheBatch(int(torch.Size(input_shape).numel()), classes)


def too_narrow(*arguments, **options):
    run = rp.abstract_gradient_training(*arguments, progress=False, **options)
    narrow = {k: Interval(p.center - 0.1 * p.radius, p.center + 0.1 * p.radius) for k, p in run.parameters.items()}
    return replace(run, parameters=narrow)


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (explanation_attacks.something_is_found, Idle()),
        (explanation_attacks.seed_reproduces, Unseeded()),
        (recipes.gradients_reach_the_weights, detached),
        (recipes.steps_lower_it, reversed_sign),
        (recipes.is_a_mixed_loss_of_the_ball, lambda **_: rp.recipe("madry", ball=rp.Linf(eps=0.9, clip=None))),
        (data_and_models.samples_for_testing_are_new, repeated),
        (data_and_models.is_the_same_every_time, drawn),
        (data_and_models.logits_have_their_shape, of_the_batch),
        (data_and_models.is_a_command_with_help, lambda: click.Command("silent")),
        (abstract_training.bounds_contain_poisoned_trainings, too_narrow),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_component_is_caught(check, broken) -> None:
    with pytest.raises(AssertionError):
        check(broken)


class Mixed:
    """Of everything that can become of a check."""

    @rp.hookimpl
    def register_datasets(self, register) -> None:
        register("repeated", repeated)
        register("file", lambda path: path)
        register("raises", lambda: 1 / 0)

    @rp.hookimpl
    def register_models(self, register) -> None:
        register("absent", of_the_batch, requires=("no_such_backend",))

    @rp.hookimpl
    def register_commands(self, register) -> None:
        register("mine", lambda: click.Command("mine", help="Says nothing."))


def test_all_of_a_plugin_is_checked(fresh_registry) -> None:  # noqa: F811
    rp.register(Mixed(), "mixed")
    found = {(o.component, o.check): o for o in conformance([c for c in all_components() if c.plugin == "mixed"])}
    assert "of 100 test samples are in training" in found["repeated", "samples_for_testing_are_new"].error
    assert not found["repeated", "is_a_dataset"].error
    assert "without parameters" in found["file", ""].skipped
    assert "ZeroDivisionError" in found["raises", "build"].error
    assert "pip install no_such_backend" in found["absent", ""].skipped
    assert found["mine", "is_a_command_with_help"].error == ""


def test_the_command_runs_the_checks(fresh_registry) -> None:  # noqa: F811
    rp.register(Mixed(), "mixed")
    for arguments in (["mixed"], []):  # without a name: all that are not built in
        result = CliRunner().invoke(commands, ["plugins", "check", "--conformance", *arguments])
        assert result.exit_code == 1
        assert "data set repeated\n  passed  is_a_dataset" in result.output
        assert "  failed  samples_for_testing_are_new\n          100 of 100 test samples" in result.output
        assert "3 of 5 checks passed." in result.output
    listed = json.loads(CliRunner().invoke(commands, ["plugins", "check", "--conformance", "mixed", "--json"]).output)
    assert {o["component"] for o in listed} == {"repeated", "file", "raises", "absent", "mine"}
    good = CliRunner().invoke(commands, ["plugins", "check", "--conformance", "models"])
    assert (good.exit_code, good.output.splitlines()[-1]) == (0, "9 of 9 checks passed.")
    assert CliRunner().invoke(commands, ["plugins", "check"]).exit_code == 2


def all_components():
    return [info for kind in Kind for info in registry().components(kind)]


@pytest.mark.parametrize("check", command_checks)
def test_our_own_commands_pass(check) -> None:
    for command in commands.commands.values():
        check(lambda command=command: command)
