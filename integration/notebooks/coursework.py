# %% [markdown]
"""
# The coursework, solved

A network 784-256-128-10 on handwritten digits, trained with Adam (1e-3) in batches of 64 for 5 epochs: attacked by one
step of gradient sign, bounded by intervals, then attacked by many steps and trained against them. Here on the 5,000
images that come with a package, 4,000 of them for training.
"""

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import robust_plugins as rp

mnist = rp.dataset("mnist5k")
x, y = mnist.x_test, mnist.y_test
print(f"{len(mnist.x_train)} images for training, {len(x)} for tests")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def fit(loss, epochs=5):
    model = network()
    torch.manual_seed(0)
    pairs = torch.utils.data.TensorDataset(mnist.x_train, mnist.y_train)
    loader = torch.utils.data.DataLoader(pairs, 64, shuffle=True)
    rp.fit(model, loader, loss, epochs=epochs, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), progress=False)
    return model


def accuracy(model, inputs):
    with torch.no_grad():
        return (model(inputs).argmax(1) == y).float().mean().item()


standard = fit(rp.recipe("standard"))
print(f"clean accuracy {accuracy(standard, x):.3f}")

# %% [markdown]
# ## One step of gradient sign
# Written out, and by its name. Both find the same inputs.


# %%
def fgsm(model, inputs, labels, eps):
    inputs = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    return (inputs + eps * gradient.sign()).clamp(0, 1).detach()


ball = rp.Linf(eps=0.1, clip=mnist.clip)
by_hand = accuracy(standard, fgsm(standard, x, y, 0.1))
by_name = rp.attack("rp:fgsm")(standard, x, y, ball, seed=0)
print(f"by hand {by_hand:.3f}, by name {1 - by_name.success.float().mean():.3f}")
assert abs(by_hand - (1 - by_name.success.float().mean().item())) < 0.02

shown = by_name.success.nonzero().flatten()[:4]
figure, axes = plt.subplots(2, 4, figsize=(7, 3.8), layout="constrained")
for column, sample in enumerate(shown.tolist()):
    for row, image in enumerate((x[sample], by_name.x_adv[sample])):
        axes[row, column].imshow(image[0], cmap="gray")
        axes[row, column].set_title(f"decided as {standard(image.unsqueeze(0)).argmax().item()}", fontsize=9)
        axes[row, column].axis("off")
plt.show()

# %% [markdown]
# ## Interval arithmetic
# The interval of a layer `W z + b` has the centre `W c + b` and the radius `|W| r`: three lines. The package bounds the
# differences of logits and merges them into the last layer, which proves more than one interval for each logit.


# %%
def intervals(model, low, high):
    for layer in model:
        if isinstance(layer, nn.Linear):
            centre, radius = layer((low + high) / 2), (high - low) / 2 @ layer.weight.abs().T
            low, high = centre - radius, centre + radius
        else:
            low, high = layer(low), layer(high)
    return low, high


eps = 0.0025
narrow = rp.Linf(eps=eps, clip=mnist.clip)
with torch.no_grad():
    low, high = intervals(standard, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
own, others = low.gather(1, y.unsqueeze(1)), high.scatter(1, y.unsqueeze(1), -torch.inf).amax(1, keepdim=True)
by_hand = (own > others).float().mean().item()
by_name = rp.certifier("interval:ibp")(standard, x, y, narrow).certified.float().mean().item()
print(f"each logit on its own {by_hand:.3f}, differences of logits {by_name:.3f}")
assert by_name >= by_hand
bounds = rp.certifier("interval:ibp").bounds(standard, x, narrow)
assert torch.allclose(bounds.lower, low, atol=1e-4)

# %% [markdown]
# ## Assignment 1: many steps
# Projected gradient descent from a Gaussian start.


# %%
def pgd(model, inputs, labels, eps, steps=20, step=0.01):
    found = (inputs + eps * torch.randn_like(inputs)).clamp(inputs - eps, inputs + eps).clamp(0, 1)
    for _ in range(steps):
        found.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        found = (found + step * gradient.sign()).clamp(inputs - eps, inputs + eps).clamp(0, 1).detach()
    return found


torch.manual_seed(0)
by_hand = accuracy(standard, pgd(standard, x, y, 0.1))
comparison = rp.compare(standard, x, y, ball, ["rp:fgsm", "rp:pgd(steps=20)"], seed=0)
print(f"by hand {by_hand:.3f}")
print(comparison)
assert comparison.rows[1].accuracy <= comparison.rows[0].accuracy + 0.01

# %% [markdown]
# ## Assignment 2: training against them
# The same network, trained on the worst inputs that seven steps find, and on interval bounds. `gamma` weighs the clean
# loss against the worst one.

# %%
attacked = fit(rp.MixedLoss(worst="rp:pgd(steps=7)", gamma=0.5, ball=ball))
certified = fit(rp.recipe("ibp", ball=ball, epochs=10), epochs=10)
rows = {"standard": standard, "against PGD": attacked, "on intervals": certified}
for name, model in rows.items():
    row = rp.compare(model, x[:500], y[:500], ball, ["rp:pgd(steps=20)", "interval:ibp"], seed=0)
    print(f"{name:14}clean {row.clean:.3f}   PGD {row.rows[0].accuracy:.3f}   proved {row.rows[1].accuracy:.3f}")
    assert not row.crossings
