# %% [markdown]
"""
# Audit two tools against each other

Two certifiers that share no code must not contradict one another, and no attack may succeed where either has proved
that none can. Where that happens, one of them is wrong.
"""

# %%
from dataclasses import dataclass

import torch
from torch import nn

import robust_plugins as rp

digits = rp.dataset("digits")
x, y = digits.x_test[:60], digits.y_test[:60]
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)
)
rp.train(model, digits.x_train, digits.y_train, epochs=15, seed=0)
ball = rp.Linf(eps=0.03, clip=digits.clip)

# %% [markdown]
# ## auto_LiRPA and the package's own engine
# Both compute CROWN's bounds. Margins differ by rounding and by choices of slopes; the bounds of each must contain what
# the model does at any point of the ball, so their intersection is never empty.

# %%
names = [info.name for info in rp.certifiers() if info.status == "loaded"]
mine = "interval:crown"
theirs = "lirpa:crown" if "lirpa:crown" in names else "interval:crown-ibp"
first, second = (rp.certifier(name).bounds(model, x, ball) for name in (mine, theirs))
meet = torch.minimum(first.upper, second.upper) - torch.maximum(first.lower, second.lower)
print(f"{mine} and {theirs}: the smallest intersection is {meet.min():.4f} wide")
assert (meet > -1e-4).all()

# %% [markdown]
# ## All of it in one table, with attacks
# `compare` looks for contradictions by itself.

# %%
comparison = rp.compare(model, x, y, ball, ["rp:margin-pgd", "rp:apgd", mine, theirs], seed=0)
print(comparison)
assert not comparison.crossings

# %% [markdown]
# ## A tool with a fault
# Somebody takes the diameter for the radius, so that the ball is half as wide as it should be. Each result still looks
# plausible.


# %%
@dataclass(frozen=True, kw_only=True)
class Faulty(rp.Certifier):
    """CROWN on a ball of half the radius."""

    def propagate(self, model, x, ball, spec):
        return rp.certifier("interval:crown").bounds(model, x, ball.scaled(0.5), spec)


class Lab:
    @rp.hookimpl
    def register_certifiers(self, register):
        register("lab:faulty", Faulty)


rp.register(Lab(), "lab")
wide = rp.Linf(eps=0.08, clip=digits.clip)
caught = rp.compare(model, x[24:34], y[24:34], wide, ["rp:margin-pgd", mine, "lab:faulty"], seed=0)
print(caught)
assert caught.crossings
assert all(crossing.certifier == "lab:faulty" for crossing in caught.crossings)

# %% [markdown]
# Most contradict a margin. Worse is a decision that is proved and nevertheless changes; the input that does it can be
# shown to the tool's author.

# %%
crossing = next(crossing for crossing in caught.crossings if crossing.achieved < 0 < crossing.proved)
print(crossing)
x_adv = caught.rows[0].result.x_adv[crossing.sample]
with torch.no_grad():
    decision = model(x_adv.unsqueeze(0)).argmax().item()
print("label", caught.y[crossing.sample].item(), "decision", decision)
assert decision != caught.y[crossing.sample]
rp.unregister("lab")

# %% [markdown]
# Over several radii and many models the same is a study: `robust-plugins bench init` writes one, and `bench audit`
# looks at all its records together, also for verdicts that do not fall with the radius and answers that depend on the
# batch.
