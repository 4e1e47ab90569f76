# %% [markdown]
"""
# Certify your own model

Any `nn.Module` from a batch to logits will do: here one with a residual connection, batch norm and a normalisation of
its inputs.
"""

# %%
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import robust_plugins as rp


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.stem(x)
        z = torch.relu(z + self.block(z))
        return self.head(nn.functional.avg_pool2d(z, 2).flatten(1))


digits = rp.dataset("digits")
x, y = digits.x_test[:50], digits.y_test[:50]
torch.manual_seed(0)
net = Residual()
model = rp.normalised(net, digits.x_train.mean().item(), digits.x_train.std().item())
rp.train(model, digits.x_train, digits.y_train, epochs=10, seed=0)

# %% [markdown]
# The normalisation is part of the model, so that radii are in the units of the data. `clip` is the range that every
# pixel can have, and part of the set.

# %%
ball = rp.Linf(eps=0.02, clip=digits.clip)
certificate = rp.certifier("interval:crown")(model, x, y, ball)
print(certificate)
print(certificate.soundness)

# %% [markdown]
# What is unknown may be proved by more work, or broken. A cascade sends each sample as far as it must.

# %%
cascade = rp.cascade(["rp:margin-pgd", "interval:crown", "interval:branch-and-bound(timeout=10)"])
decided = cascade(model, x, y, ball)
print({name: decided.decided_by.count(name) for name in dict.fromkeys(decided.decided_by)})
assert decided.certified.sum() >= certificate.certified.sum()

# %% [markdown]
# ## Do not believe it
# With `proof`, every bound is written to a file, and a small program that shares nothing with the search checks it.

# %%
proof = Path(mkdtemp()) / "digits.proof"
sequential = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
rp.train(sequential, digits.x_train, digits.y_train, epochs=20, seed=0)
proved = rp.certifier("interval:branch-and-bound", proof=str(proof), timeout=10.0)(sequential, x[:10], y[:10], ball)
print(proved, f"{proof.stat().st_size} bytes of proof")
assert proof.exists()

# %% [markdown]
# In a shell, `robust-plugins check-proof digits.proof` reads it. From Python the same command is

# %%
from click.testing import CliRunner  # noqa: E402

from robust_plugins.cli import commands  # noqa: E402

checked = CliRunner().invoke(commands, ["check-proof", str(proof)])
print(checked.stdout)
assert checked.exit_code == 0

# %% [markdown]
# ## What it cannot bound, it refuses
# A layer that the engine does not know is named, and the verdict is `unsupported`: no answer, and no zero.


# %%
class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-3 * torch.special.bessel_j0(x)


refused = rp.certifier("interval:crown")(nn.Sequential(sequential, Strange()), x[:2], y[:2], ball)
print(refused.verdicts[0].value, "-", refused.messages[0])
assert refused.verdicts[0] is rp.Verdict.UNSUPPORTED
