"""Discovery of plugins, their status, and the registry of components by name.

Every plugin is loaded, validated and reported on its own: a broken one never takes another one down.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

import pluggy

from robust_plugins.errors import ArgumentError, PluginError, UnknownNameError
from robust_plugins.harness.component import check_final
from robust_plugins.harness.failures import told
from robust_plugins.harness.parameters import check_numbers, plain
from robust_plugins.intervals.rules.registry import BUILTIN, RegisterRules, RuleTable, follow
from robust_plugins.registry.backends import available, importable, imported_version, version_of
from robust_plugins.registry.causes import needed_by, unmarked
from robust_plugins.registry.hookspecs import PROJECT, Backend, HookSpecs
from robust_plugins.registry.information import ComponentInfo, Kind, PluginInfo, Status
from robust_plugins.registry.naming import annotations_of, parameters_of, parse_component, with_article

T = TypeVar("T")

BUILTINS = {
    "art": "robust_plugins.adapters.art",
    "lirpa": "robust_plugins.adapters.lirpa",
    "torchattacks": "robust_plugins.adapters.torchattacks",
    "foolbox": "robust_plugins.adapters.foolbox",
    "rp": "robust_plugins.decisions.attacks",
    "interval": "robust_plugins.decisions.certifiers",
    "verifier": "robust_plugins.decisions.verifier.certifier",
    "cascade": "robust_plugins.decisions.cascade",
    "data": "robust_plugins.data",
    "models": "robust_plugins.networks",
    "explanations": "robust_plugins.explanations",
    "losses": "robust_plugins.losses.recipes",
    "poison": "robust_plugins.poisoning.attacks.registered",
}
"""The plugins that come with the package, imported when the registry is first asked for something."""


@dataclass(frozen=True)
class _Component:
    name: str
    kind: Kind
    plugin: str
    factory: Callable[..., Any]
    requires: tuple[Backend, ...]

    @property
    def missing(self) -> tuple[Backend, ...]:
        return tuple(backend for backend in self.requires if not available(backend))


@dataclass
class _Plugin:
    name: str
    distribution: str
    version: str
    status: Status = Status.LOADED
    hooks: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()
    error: BaseException | None = None
    offered: set[str] = field(default_factory=set)  # names it registered, kept when it fails later


class Registry:
    """Plugins and their components. One exists per process; tests build fresh ones.

    `block` and `load` are plugin or distribution names: `block` keeps a plugin from loading, and `load`, when not
    None, is the only set of entry-point plugins that load. They default to the comma-separated environment
    variables ROBUST_PLUGINS_BLOCK and ROBUST_PLUGINS_LOAD. `builtins` and `entry_points` switch the sources off.
    """

    def __init__(
        self,
        *,
        builtins: bool = True,
        entry_points: bool = True,
        block: Iterable[str] | None = None,
        load: Iterable[str] | None = None,
    ) -> None:
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(HookSpecs)
        self._plugins: dict[str, _Plugin] = {}
        self._components: dict[tuple[Kind, str], _Component] = {}
        self.interval_rules = RuleTable(BUILTIN)
        self._block = set(_names_in("ROBUST_PLUGINS_BLOCK") or () if block is None else block)
        chosen = _names_in("ROBUST_PLUGINS_LOAD") if load is None else load
        self._load = None if chosen is None else set(chosen)
        if builtins:
            for name, module in BUILTINS.items():
                self._add(name, partial(importlib.import_module, module), PROJECT, version_of(PROJECT))
        if entry_points:
            self._add_entry_points()
            known = {n for plugin in self._plugins.values() for n in (plugin.name, plugin.distribution)}
            for absent in sorted(self._block - known):
                self._report_absent("ROBUST_PLUGINS_BLOCK", absent)

    def register(self, plugin: object, name: str | None = None) -> PluginInfo:
        """Registers a plugin object or module of this process. Raises PluginError with the cause where it fails."""
        name = name or getattr(plugin, "__name__", None) or type(plugin).__name__
        if name in self._plugins:
            if self._plugins[name].status is not Status.FAILED:
                raise PluginError(f"a plugin named {name!r} is registered already; unregister it, or pass another name")
            del self._plugins[name]  # a second try
        entry = self._add(name, lambda: plugin, "(this process)", "")
        if entry.error is not None:
            raise PluginError(f"plugin {name!r} failed: {entry.error}") from entry.error
        return self._info(entry)

    def unregister(self, name: str) -> None:
        """Forgets the plugin of this name and all its components. Raises UnknownNameError where there is none."""
        if name not in self._plugins:
            raise UnknownNameError("plugin", name, self._plugins)
        self._forget(self._plugins.pop(name))

    def plugins(self, *, offering: str | None = None) -> list[PluginInfo]:
        """Every plugin that was found, with status, distribution, version, hooks, components and error.

        With `offering` those alone that have a component of this name.
        """
        mine = {c.plugin for c in self._components.values() if c.name == offering}
        return [self._info(plugin) for name, plugin in self._plugins.items() if offering is None or name in mine]

    def components(self, kind: Kind) -> list[ComponentInfo]:
        """Every component of one kind, in the order of registration."""
        found = [c for c in self._components.values() if c.kind is kind]
        return [
            ComponentInfo(
                c.name,
                kind,
                c.plugin,
                self._plugins[c.plugin].version,
                Status.BACKEND_MISSING if c.missing else Status.LOADED,
                "; ".join(b.install for b in c.missing),
                tuple(parameters_of(c.factory)),
            )
            for c in found
        ]

    def kind_of(self, name: str, kinds: Iterable[Kind]) -> Kind:
        """Which of `kinds` has a component of this name. Raises as `create` does where none has."""
        kinds = list(kinds)
        base, _ = parse_component(name)
        for kind in kinds:
            if (kind, base) in self._components:
                return kind
        raise self._unknown(" or ".join(kinds), base, kinds)

    def factory_of(self, kind: Kind, name: str) -> Callable[..., Any]:
        """The registered callable that builds the component `name`; it is not called, and may lack its backend.

        Raises UnknownNameError for an unknown component.
        """
        component = self._components.get((kind, name))
        if component is None:
            raise self._unknown(kind, name, [kind])
        return component.factory

    def create(self, kind: Kind, name: str, /, **parameters: Any) -> Any:
        """Builds the component `name`, which may carry parameters itself: `"art:pgd(steps=40)"`.

        Raises UnknownNameError with the nearest names for an unknown component or parameter, and PluginError with
        the stored cause where its plugin failed or its backend is missing.
        """
        base, written = parse_component(name)
        component = self._components.get((kind, base))
        if component is None:
            raise self._unknown(kind, base, [kind])
        if component.missing:
            needs = ", ".join(f"{b.module} {b.at_least}".strip() for b in component.missing)
            install = "; ".join(b.install for b in component.missing)
            older = all(importable(b.module) for b in component.missing)
            cause = "of which an older one is installed" if older else "which cannot be imported"
            raise PluginError(f"{kind} {base!r} needs {needs}, {cause}; install it: {install}")
        parameters = {parameter: plain(value) for parameter, value in (written | parameters).items()}
        known = parameters_of(component.factory)
        for parameter in parameters:
            if parameter not in known and "**" not in known:
                raise UnknownNameError(f"parameter of {base!r}:", parameter, known)
        check_numbers(parameters, annotations_of(component.factory))
        try:
            built = component.factory(**parameters)
        except TypeError as error:  # a value of the wrong type, or a required one that is missing
            raise ArgumentError(
                f"parameters of {base}", parameters, accepted=", ".join(known) or "none", hint=f"{error}."
            ) from error
        check_final(type(built))  # again, should a method have been replaced since its class was made
        return built

    def observe(self, hook: str, **arguments: Any) -> None:
        """Calls an observer hook of every plugin. One that raises is a warning: it must not end somebody's run."""
        everyone = self._pluggy.get_plugins()
        for plugin in everyone:
            try:
                self._pluggy.subset_hook_caller(hook, remove_plugins=everyone - {plugin})(**arguments)
            except (Exception, SystemExit) as error:
                name = self._pluggy.get_name(plugin)
                warnings.warn(f"plugin {name!r}: {hook} raised {type(error).__name__}: {error}", stacklevel=2)

    def _add_entry_points(self) -> None:
        found = sorted(metadata.entry_points(group=PROJECT), key=lambda e: e.name)
        names = {n for e in found for n in (e.name, e.dist.name if e.dist else "")}
        for entry in found:
            distribution = entry.dist.name if entry.dist else ""
            version = entry.dist.version if entry.dist else ""
            if self._load is None or self._load & {entry.name, distribution}:
                self._add(entry.name, entry.load, distribution, version)
        for absent in sorted((self._load or set()) - names):
            self._report_absent("ROBUST_PLUGINS_LOAD", absent)

    def _report_absent(self, variable: str, name: str) -> None:
        """A misspelt name must not look as if it had been obeyed."""
        error = PluginError(f"{variable} names {name!r}, but no installed plugin has that name")
        self._plugins[name] = _Plugin(name, "", "", Status.FAILED, error=error)

    def _add(self, name: str, load: Callable[[], object], distribution: str, version: str) -> _Plugin:
        entry = _Plugin(name, distribution, version)
        if name in self._plugins:
            other = self._plugins[name]
            entry.name = name = f"{name} ({distribution})"
            entry.status = Status.FAILED
            entry.error = PluginError(
                f"two plugins are named {other.name!r}: one of {other.distribution!r} and one of {distribution!r}"
            )
        elif self._block & {name, distribution}:
            entry.status = Status.BLOCKED
            entry.error = PluginError(f"plugin {name!r} is blocked by ROBUST_PLUGINS_BLOCK")
        self._plugins[name] = entry
        if entry.error is None:
            try:
                self._activate(entry, load())
            except (Exception, SystemExit) as error:  # whatever a stranger's plugin raises is its status, not our end
                entry.status, entry.error = Status.FAILED, error
                self._forget(entry)
        return entry

    def _activate(self, entry: _Plugin, plugin: object) -> None:
        self._pluggy.register(plugin, entry.name)
        callers = self._pluggy.get_hookcallers(plugin) or []
        entry.hooks = tuple(sorted(caller.name for caller in callers))
        specified = [name for name in vars(HookSpecs) if not name.startswith("_")]
        for name in entry.hooks:
            if name not in specified:
                raise UnknownNameError("hook", name, specified, hint="Rename the function marked with @rp.hookimpl.")
        # A function that only looks like a hook registers nothing, and nobody would hear of it.
        named = [name for name in specified if name not in entry.hooks and callable(getattr(plugin, name, None))]
        entry.unmarked = tuple(named)
        if not entry.hooks:
            cause = f"its {unmarked(entry.unmarked)}" if named else "mark its functions with @rp.hookimpl"
            raise PluginError(f"{plugin!r} implements no hook; {cause}")
        others = self._pluggy.get_plugins() - {plugin}
        for kind in Kind:
            call = self._pluggy.subset_hook_caller(kind.hook, remove_plugins=others)
            call(register=partial(self._register_component, entry, kind))
        call = self._pluggy.subset_hook_caller("register_interval_rules", remove_plugins=others)
        call(register=RegisterRules(entry.name, self.interval_rules))

    def _register_component(
        self,
        plugin: _Plugin,
        kind: Kind,
        name: str,
        factory: Callable[..., Any],
        *,
        requires: tuple[str | Backend, ...] = (),
    ) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*(:[a-z0-9][a-z0-9_.-]*)?", name):
            raise ArgumentError(
                "name",
                repr(name),
                accepted="lower case letters, digits, '.', '_' and '-', as 'provider:method' or 'name'",
                hint=f"Rename this {kind} of plugin {plugin.name!r}.",
            )
        if not callable(factory):
            raise ArgumentError(
                "factory", repr(factory), accepted="a class or function", hint=f"Pass the class of {name!r} itself."
            )
        other = self._components.get((kind, name))
        if other is not None:
            raise PluginError(
                f"{kind} {name!r} is provided twice: by plugin {other.plugin!r} and by plugin {plugin.name!r}; "
                "the first is kept. Rename one, or block its plugin with ROBUST_PLUGINS_BLOCK"
            )
        backends = tuple(Backend(r, f"pip install {r}") if isinstance(r, str) else r for r in requires)
        plugin.offered.add(name)
        self._components[kind, name] = _Component(name, kind, plugin.name, factory, backends)

    def _forget(self, entry: _Plugin) -> None:
        if self._pluggy.has_plugin(entry.name):
            self._pluggy.unregister(name=entry.name)
        self._components = {k: c for k, c in self._components.items() if c.plugin != entry.name}
        self.interval_rules.forget(entry.name)

    def _info(self, plugin: _Plugin) -> PluginInfo:
        components = [c for c in self._components.values() if c.plugin == plugin.name]
        status = plugin.status
        if components and all(c.missing for c in components):
            status = Status.BACKEND_MISSING
        causes = [told(plugin.error)] if plugin.error else []
        if plugin.unmarked and plugin.error is None:
            causes.append(f"its {unmarked(plugin.unmarked)}")
        causes += needed_by([(c.name, c.missing) for c in components])
        names = tuple(c.name for c in components)
        needed = sorted({b.module for c in components for b in c.requires if importable(b.module)})
        backends = tuple(f"{module} {imported_version(module)}".strip() for module in needed)
        return PluginInfo(
            plugin.name, status, plugin.distribution, plugin.version, plugin.hooks, names, "; ".join(causes), backends,
            plugin.unmarked,
        )  # fmt: skip

    def _unknown(self, what: str, name: str, kinds: list[Kind]) -> Exception:
        for plugin in self._plugins.values():
            mine = name in plugin.offered or name.split(":")[0] == plugin.name
            if plugin.error is not None and mine:
                error = PluginError(f"{what} {name!r} is not available: plugin {plugin.name!r} {plugin.status}: "
                                    f"{plugin.error}")  # fmt: skip
                error.__cause__ = plugin.error
                return error
        known = [c.name for c in self._components.values() if c.kind in kinds]
        others = [c.kind for c in self._components.values() if c.name == name and c.kind not in kinds]
        return UnknownNameError(what, name, known, elsewhere=" and of ".join(map(with_article, others)))


def _names_in(variable: str) -> list[str] | None:
    text = os.environ.get(variable)
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


_default: Registry | None = None

# The interval engine knows no registry; it takes the rules of the present one.
follow(lambda: None if _default is None else _default.interval_rules)


def registry() -> Registry:
    """The registry of this process, built and filled when it is first asked for."""
    global _default
    if _default is None:
        _default = Registry()
    return _default


@contextmanager
def using(replacement: Registry) -> Iterator[Registry]:
    """Makes `replacement` the registry of this process inside the block."""
    global _default
    before, _default = _default, replacement
    try:
        yield replacement
    finally:
        _default = before


def register(plugin: object, name: str | None = None) -> PluginInfo:
    """Registers a plugin object or module of this process; see `robust_plugins.registry.hookspecs` for its hooks.

    >>> class Mine:
    ...     @rp.hookimpl
    ...     def register_models(self, register):
    ...         register("mine", lambda input_shape, classes: torch.nn.Linear(input_shape[0], classes))
    >>> info = rp.register(Mine(), "mine")
    >>> rp.model("mine", input_shape=(2,), classes=3)
    Linear(in_features=2, out_features=3, bias=True)
    >>> rp.unregister("mine")
    """
    return registry().register(plugin, name)


def unregister(name: str) -> None:
    """Forgets a plugin and its components."""
    registry().unregister(name)


def plugins() -> list[PluginInfo]:
    """Every plugin that was found, with status, distribution, version, hooks, components and error."""
    return registry().plugins()


def build(kind: Kind, base: type[T], name: str, /, **parameters: Any) -> T:
    """Builds the component of `kind` registered as `name`, and checks that it is a `base`.

    Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed, its backend is
    missing or its factory returned something else, ArgumentError for a parameter's value.
    """
    component = registry().create(kind, name, **parameters)
    if not isinstance(component, base):
        raise PluginError(f"{kind} {name!r}: its factory returned {component!r}, which is no rp.{base.__name__}")
    return component
