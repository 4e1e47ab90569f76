"""The hook specifications: what a plugin may implement. Written for plugin authors.

A plugin is a module or an object whose functions carry `@rp.hookimpl` and have the names below. It is found through
the entry-point group `robust_plugins` of an installed distribution, or registered with `rp.register(plugin)`. Every
`register_*` hook receives one callable, `register`; call it once per component:

    register(name, factory, *, requires=())

- `name`: `provider:method` for attacks and certifiers (`mylab:square`), a plain name for data sets, models and
  commands. Lower case letters, digits, `.`, `_` and `-`.
- `factory`: called with the component's parameters as keywords, returns the component; usually the frozen
  dataclass itself.
- `requires`: the backends that the factory needs, as import names (`"art"`) or `rp.Backend("art", install="...")`.
  Do not import them at the top of the plugin: a missing backend is then a status and not a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    from robust_plugins.intervals.rules.registry import RegisterRules

PROJECT = "robust_plugins"
"""The pluggy project name, and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Backend(NamedTuple):
    """A package that a component needs: the name it is imported by, the command that installs it, and which version.

    - `module`: the name that it is imported by.
    - `install`: the command that installs it.
    - `at_least`: the oldest version that will do; empty for any. It is compared with the version of the installed
      distribution of that name; one without metadata, as a checkout on the path, is taken to be recent enough.
    """

    module: str
    install: str
    at_least: str = ""


@runtime_checkable
class Register(Protocol):
    """The callable that every `register_*` hook receives."""

    def __call__(self, name: str, factory: Callable[..., Any], *, requires: tuple[str | Backend, ...] = ()) -> None:
        """Registers `factory` under `name`. Raises where the name is malformed or another plugin has it."""


class HookSpecs:
    """Every hook, in the order in which a run meets them."""

    @hookspec
    def register_attacks(self, register: Register) -> None:
        """Register attacks: factories of `rp.Attack`."""

    @hookspec
    def register_certifiers(self, register: Register) -> None:
        """Register certifiers: factories of `rp.Certifier`."""

    @hookspec
    def register_datasets(self, register: Register) -> None:
        """Register data sets: factories of `rp.Dataset`."""

    @hookspec
    def register_models(self, register: Register) -> None:
        """Register models: factories of `torch.nn.Module`, called with `input_shape` and `classes`."""

    @hookspec
    def register_explanation_certifiers(self, register: Register) -> None:
        """Register bounds on input gradients: factories of `rp.ExplanationCertifier`."""

    @hookspec
    def register_explanation_attacks(self, register: Register) -> None:
        """Register searches for inputs with other gradients: factories of `rp.ExplanationAttack`."""

    @hookspec
    def register_poisoning_attacks(self, register: Register) -> None:
        """Register attacks on training data: factories of `rp.PoisoningAttack`."""

    @hookspec
    def register_losses(self, register: Register) -> None:
        """Register recipes: factories of `rp.MixedLoss`. Those that ramp take `epochs`, those with a ball `ball`."""

    @hookspec
    def register_interval_rules(self, register: RegisterRules) -> None:
        """Teach the interval engine a type of layer: how it bounds its output, and its gradients.

        Call `register(layer, forward=..., backward=...)` once per type; `robust_plugins.intervals.rules.registry` says
        what each rule takes and returns. For a monotone activation these are

            def forward(layer, x):
                return x.map(torch.exp)

            def backward(layer, x, grad):
                return grad * x.map(torch.exp)
        """

    @hookspec
    def register_commands(self, register: Register) -> None:
        """Register commands of `robust-plugins`: factories, called without arguments, of `click.Command`."""

    @hookspec
    def on_run_start(self, run: dict[str, Any]) -> None:
        """A comparison begins. `run` holds the components' names, the ball, the seed and the number of samples."""

    @hookspec
    def on_record(self, run: dict[str, Any], name: str, result: Any) -> None:
        """A component of the comparison has finished. Look, but do not change the result.

        It is an `rp.AttackResult` or an `rp.Certificate`; in a comparison of explanations their counterparts, an
        attack's once for each of its goals.
        """

    @hookspec
    def on_run_end(self, run: dict[str, Any], error: BaseException | None) -> None:
        """The comparison is over; `error` is None where it was completed."""
