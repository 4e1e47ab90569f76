# %% [markdown]
"""
# A tour

Four questions about one small network, each answered from both sides: what an attack achieves, and what is proved.
"""

# %%
import torch

import robust_plugins as rp

digits = rp.dataset("digits")
x, y = digits.x_test[:100], digits.y_test[:100]
ball = rp.Linf(eps=0.03, clip=digits.clip)

torch.manual_seed(0)
model = rp.model("mlp(widths=(32, 32))", input_shape=digits.input_shape, classes=10)
rp.train(model, digits.x_train, digits.y_train, epochs=20, seed=0)

# %% [markdown]
# ## Can an input near x change the decision?
# Attacks say how far the accuracy falls at least, certifiers how far at most.

# %%
comparison = rp.compare(model, x, y, ball, ["rp:fgsm", "rp:margin-pgd", "interval:ibp", "interval:crown"], seed=0)
print(comparison)
attacked, certified = comparison.bracket
assert certified <= attacked <= comparison.clean
assert not comparison.crossings

# %% [markdown]
# Interval arithmetic proves nothing about a network that was not trained for it; linear relaxation does. What is left
# between the two sides at a larger radius is closed by branch and bound:

# %%
wider = rp.Linf(eps=0.05, clip=digits.clip)
names = ["rp:margin-pgd", "interval:crown", "interval:branch-and-bound(timeout=20)"]
closed = rp.compare(model, x[:40], y[:40], wider, names, seed=0)
print(closed)
assert closed.rows[1].accuracy <= closed.rows[2].accuracy <= closed.rows[0].accuracy

# %% [markdown]
# ## At which radius does it break?

# %%
radius = rp.critical_radius(
    ["rp:margin-pgd", "interval:crown"], model, x[:20], y[:20], rp.Linf(eps=0.3, clip=(0, 1)), seed=0
)
print(radius)
broken, proved = radius
assert (proved <= broken).all()

# %% [markdown]
# ## Can it change the explanation?
# The explanation is the gradient of the logit. Its components move by less than the last row says, over the whole ball.

# %%
small = rp.Linf(eps=0.01, clip=digits.clip)
explanations = rp.compare_explanations(
    model, x[:20], y[:20], small, ["gradient:corner-pgd", "interval:relaxed"], seed=0
)
print(explanations)
assert not explanations.crossings

# %% [markdown]
# ## Can poison in the training data change what is learnt?
# Here 5 of 500 training samples may be moved by 0.01 in every pixel. The bounds hold for every network that training
# on such data can return.

# %%
torch.manual_seed(0)
linear = rp.model("linear", input_shape=digits.input_shape, classes=10).eval()
budget = rp.PoisoningBudget(points=5, eps=0.01)
bracket = rp.poisoning_bracket(
    linear, [(digits.x_train[:500], digits.y_train[:500])], budget, validation=(x, y),
    loss="cross_entropy", optimizer=rp.SGD(lr=0.5), epochs=10, domain="zonotope",
    attacks=["poison:random", "poison:loss-ascent"], progress=False,
)  # fmt: skip
left, sure = bracket.accuracy
print(f"clean {bracket.nominal:.2f}, attacks left {left:.2f}, certified {sure:.2f}")
assert sure <= left

# %% [markdown]
# ## And training for it
# The mixed loss with the worst case from interval arithmetic. The same certifier that proved nothing above now proves
# most decisions, for a little accuracy.

# %%
torch.manual_seed(0)
robust = rp.model("mlp(widths=(32, 32))", input_shape=digits.input_shape, classes=10)
rp.ibp_initialisation(robust)
loss = rp.MixedLoss(worst="interval:ibp", gamma=0.5, ball=ball, schedule=rp.Ramp(start=1, end=20))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(digits.x_train, digits.y_train), 64, shuffle=True)
rp.fit(robust, loader, loss, epochs=40, optimizer=torch.optim.Adam(robust.parameters(), lr=2e-3), progress=False)
after = rp.compare(robust, x, y, ball, ["rp:margin-pgd", "interval:ibp"], seed=0)
print(after)
assert after.rows[-1].accuracy > 0.5 > comparison.rows[2].accuracy
