"""The kinds of things that can be registered, and what the registry says of plugins and components."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from robust_plugins.harness.stored import stored


@stored
class Kind(StrEnum):
    """The kinds of things that can be registered; the value is what messages call one."""

    ATTACK = "attack"
    CERTIFIER = "certifier"
    DATASET = "data set"
    MODEL = "model"
    EXPLANATION_CERTIFIER = "explanation certifier"
    EXPLANATION_ATTACK = "explanation attack"
    POISONING_ATTACK = "poisoning attack"
    LOSS = "recipe"
    COMMAND = "command"

    @property
    def hook(self) -> str:
        """The hook that registers this kind."""
        return "register_losses" if self is Kind.LOSS else f"register_{self.name.lower()}s"


class Status(StrEnum):
    """The states that a plugin or a component can be in."""

    LOADED = "loaded"
    FAILED = "failed"
    BLOCKED = "blocked"
    BACKEND_MISSING = "backend missing"


@dataclass(frozen=True)
class PluginInfo:
    """One plugin: where it came from and what became of it.

    - `name`: under which it was registered, or its entry point.
    - `status`: loaded, failed, blocked, or its backend missing.
    - `distribution`: the installed package that it is part of; empty for one of this process.
    - `version`: of that package.
    - `hooks`: those that it implements.
    - `components`: the names that it registered.
    - `error`: why it failed, or how to install what is missing; empty where nothing is.
    - `backends`: the packages that its components need and that can be imported, each with its version where it
      tells one.
    - `unmarked`: functions that have the name of a hook and lack `@rp.hookimpl`, so that what they offer is
      missing.
    """

    name: str
    status: Status
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    error: str = ""
    backends: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComponentInfo:
    """One registered component: its name, its plugin, and whether its backend is there.

    - `name`: `provider:method`, or a plain name.
    - `kind`: attack, certifier, data set and so on.
    - `plugin`: the name of its plugin.
    - `version`: of that plugin.
    - `status`: loaded, or its backend missing.
    - `missing`: how to install what is missing; empty where nothing is.
    - `parameters`: what its factory takes.
    """

    name: str
    kind: Kind
    plugin: str
    version: str
    status: Status
    missing: str = ""
    parameters: tuple[str, ...] = ()
