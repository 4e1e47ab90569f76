# %% [markdown]
"""
# Poisoned data

How much can somebody who controls a few training samples change what is learnt? Attacks answer from one side, training
on intervals of parameters from the other.
"""

# %%
import torch
from sklearn.datasets import make_moons
from sklearn.tree import DecisionTreeClassifier

import robust_plugins as rp
from robust_plugins.brackets.poisoning_plots import region_figure

plane, classes = (torch.tensor(part) for part in make_moons(900, noise=0.1, random_state=0))
powers = torch.cat([plane, plane**2, plane**3], 1)
mean, scale = powers.mean(0), powers.std(0)


def features(points):
    return (torch.cat([points, points**2, points**3], 1) - mean) / scale


data = [(features(plane[:600]), classes[:600])]
held = (features(plane[600:]), classes[600:])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 48), torch.nn.ReLU(), torch.nn.Linear(48, 2)).double().eval()
training = {"loss": "cross_entropy", "optimizer": rp.SGD(lr=2.0, decay=0.6), "epochs": 4, "progress": False}

# %% [markdown]
# ## Both sides of one budget
# Twelve of the 600 samples may move by 0.01 in every feature.

# %%
budget = rp.PoisoningBudget(points=12, eps=0.01)
for domain in ("box", "zonotope"):
    run = rp.abstract_gradient_training(model, data, budget, domain=domain, **training)
    print(f"{domain}: accuracy at least {run.certified_accuracy(*held):.3f}, widths sum to {run.width:.2f}")

bracket = rp.poisoning_bracket(model, data, budget, validation=held, domain="zonotope", seed=0, **training)
left, sure = bracket.accuracy
print(f"clean {bracket.nominal:.3f}, attacks left {left:.3f}, certified {sure:.3f}")
assert sure <= left <= 1
assert not bracket.crossings

# %% [markdown]
# Every trained parameter ends inside its interval, whatever the poison; attacks show how much of it they can use.

# %%
bracket.plot()

# %% [markdown]
# ## Where the decision is certain
# Points whose class is the same for every network that poisoned training can return, for growing budgets.

# %%
runs = {
    f"{points} points": rp.abstract_gradient_training(
        model, data, rp.PoisoningBudget(points=points, eps=0.02), **training
    )
    for points in (2, 12, 30)
}
accuracies = [run.certified_accuracy(*held) for run in runs.values()]
print([round(accuracy, 3) for accuracy in accuracies])
assert accuracies == sorted(accuracies, reverse=True)
region_figure(runs, features, (plane[600:], classes[600:]), limits=(-1.6, 2.6, -1.1, 1.6), columns=3)

# %% [markdown]
# ## Changed labels
# Three labels may be flipped instead.

# %%
flipped = rp.abstract_gradient_training(model, data, rp.PoisoningBudget(labels=3), domain="zonotope", **training)
print(f"accuracy at least {flipped.certified_accuracy(*held):.3f}")

# %% [markdown]
# ## Learners that no interval can follow
# Trees vote, each trained on its own part of the data. A poisoned sample reaches one or two of them.

# %%
votes = rp.partition_aggregation(DecisionTreeClassifier(random_state=0), *data[0], partitions=25, progress=False)
certificate = votes.certify(*held)
for count in (0, 2, 4):
    print(f"{count} samples changed: accuracy at least {certificate.certified_accuracy(count):.3f}")
assert certificate.certified_accuracy(2) <= certificate.certified_accuracy(0)
