"""Adapters to auto_LiRPA's certifiers. Importing this package imports no backend."""

from robust_plugins.adapters.lirpa.certifiers import CROWN, CROWNIBP, IBP, AlphaCROWN
from robust_plugins.adapters.lirpa.compat import BACKEND, JACOBIAN_BACKEND
from robust_plugins.adapters.lirpa.jacobian import Jacobian
from robust_plugins.registry.hookspecs import Register, hookimpl


@hookimpl
def register_certifiers(register: Register) -> None:
    """Registers the certifiers of auto_LiRPA."""
    register("lirpa:ibp", IBP, requires=(BACKEND,))
    register("lirpa:crown-ibp", CROWNIBP, requires=(BACKEND,))
    register("lirpa:crown", CROWN, requires=(BACKEND,))
    register("lirpa:alpha-crown", AlphaCROWN, requires=(BACKEND,))


@hookimpl
def register_explanation_certifiers(register: Register) -> None:
    """Registers auto_LiRPA's bounds on gradients."""
    register("lirpa:jacobian", Jacobian, requires=(JACOBIAN_BACKEND,))
