# %% [markdown]
"""
# Write a plugin

An attack, a certifier and a rule for a layer of your own, from nothing to a place in the table of comparisons.
"""

# %%
from dataclasses import dataclass

import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.testing import attack_checks, certifier_checks

digits = rp.dataset("digits")
x, y = digits.x_test[:60], digits.y_test[:60]
ball = rp.Linf(eps=0.03, clip=digits.clip)

# %% [markdown]
# ## An attack
# It is a frozen dataclass whose fields are its parameters. `perturb` returns candidates; the call around it projects
# them, runs the model again and decides what counts as success.


# %%
@dataclass(frozen=True, kw_only=True)
class Walk(rp.Attack):
    """Random steps to corners of the ball; a step is kept where it raises the loss.

    - `steps`: how many are tried.
    """

    steps: int = 20
    black_box = True

    def perturb(self, model, x, y, ball, *, targeted):
        def loss(z):
            with torch.no_grad():
                found = nn.functional.cross_entropy(model(z), y, reduction="none")
            return -found if targeted else found

        best, value = x, loss(x)
        for _ in range(self.steps):
            corner = ball.sample(x, 1, draw="corner")[0]
            candidate = torch.where(torch.rand_like(x) < 0.3, corner, best)
            candidate = ball.project(candidate, x)
            reached = loss(candidate)
            better = (reached > value).view(-1, *[1] * (x.dim() - 1))
            best, value = torch.where(better, candidate, best), torch.maximum(reached, value)
        return best


# %% [markdown]
# ## A certifier
# `propagate` returns an interval of the logits, or of the rows of `spec`. This one asks another certifier and widens
# what it says, which is sound, and never tighter.


# %%
@dataclass(frozen=True, kw_only=True)
class Careful(rp.Certifier):
    """The bounds of `interval:ibp`, wider by a part of their width.

    - `extra`: that part.
    """

    extra: float = 0.01

    def propagate(self, model, x, ball, spec):
        found = rp.certifier("interval:ibp").propagate(model, x, ball, spec)
        more = self.extra * found.radius
        return rp.Interval(found.lower - more, found.upper + more)


# %% [markdown]
# ## A layer of your own
# The engine learns it by one rule each way: the interval of the output, and the interval of the gradient.


# %%
class Cube(nn.Module):
    def forward(self, x):
        return x**3


class MyLab:
    @rp.hookimpl
    def register_attacks(self, register):
        register("mylab:walk", Walk)

    @rp.hookimpl
    def register_certifiers(self, register):
        register("mylab:careful", Careful)

    @rp.hookimpl
    def register_interval_rules(self, register):
        def forward(layer, x):  # increasing, so the ends map to the ends
            return x.map(lambda end: end**3)

        def backward(layer, x, grad):  # the slope at z is 3 z^2
            size = torch.maximum(x.lower.abs(), x.upper.abs())
            least = torch.where((x.lower < 0) & (x.upper > 0), 0.0, torch.minimum(x.lower.abs(), x.upper.abs()))
            return grad * rp.Interval(3 * least**2, 3 * size**2)

        register(Cube, forward=forward, backward=backward)


print(rp.register(MyLab(), "mylab"))

# %% [markdown]
# ## In use
# By name, like everything else, also from the command line and in studies once it is installed through the entry point
# `robust_plugins`.

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Cube(), nn.Linear(16, 10))
rp.train(model, digits.x_train, digits.y_train, epochs=10, seed=0)
comparison = rp.compare(model, x, y, ball, ["mylab:walk(steps=100)", "rp:pgd", "mylab:careful", "interval:ibp"], seed=0)
print(comparison)
assert not comparison.crossings

# %% [markdown]
# ## What it owes
# The conformance checks look for what plugins get wrong: points outside the ball, state that is left behind, bounds
# that a search can leave. In your tests they are parametrisations; here a loop.

# %%
for check in attack_checks:
    check(Walk())
for check in certifier_checks:
    check(Careful())
print(len(attack_checks), "and", len(certifier_checks), "checks passed")
rp.unregister("mylab")
