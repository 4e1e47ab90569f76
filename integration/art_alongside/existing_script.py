"""A script of ART, and the five lines that add brackets to it: those that end in `# rp`.

    python -m integration.art_alongside.existing_script

The rest is what users of ART have: a PyTorchClassifier with normalisation, a defence in training, an adversarial
trainer, and PGD. The estimator, its numpy arrays and the attack as it was configured go on as they are.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.preprocessor import GaussianAugmentation
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

import robust_plugins as rp  # rp

EPS = 0.05


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of shape (n, 1, 8, 8) in [0, 1] and their classes, for training and for testing."""
    data = load_digits()
    x, y = (data.images / 16).astype(np.float32)[:, None], data.target
    order = np.random.RandomState(0).permutation(len(x))
    x, y = x[order], y[order]
    return x[:1297], y[:1297], x[1297:], y[1297:]


def classifier_for(x: np.ndarray) -> PyTorchClassifier:
    """An untrained network behind the normalisation of its inputs, trained on noisy copies of them as well."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        clip_values=(0.0, 1.0),
        preprocessing=(float(x.mean()), float(x.std())),
        preprocessing_defences=[GaussianAugmentation(sigma=0.05, augmentation=False, clip_values=(0.0, 1.0))],
    )


def run(epochs: int = 15, samples: int = 100) -> rp.Comparison:
    """Trains and attacks with ART, then brackets with the five lines; prints what both say."""
    np.random.seed(0)  # noqa: NPY002 (as scripts of ART do)
    x_train, y_train, x_test, y_test = digits()
    classifier = classifier_for(x_train)
    attack = ProjectedGradientDescent(classifier, eps=EPS, eps_step=0.01, max_iter=20, verbose=False)
    AdversarialTrainer(classifier, attack, ratio=0.5).fit(x_train, y_train, nb_epochs=epochs)
    x, y = x_test[:samples], y_test[:samples]
    attacked = (classifier.predict(attack.generate(x, y)).argmax(1) == y).mean()
    print(f"ART: accuracy {(classifier.predict(x).argmax(1) == y).mean():.3f}, under its PGD {attacked:.3f}")

    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)  # rp
    names = [rp.from_art(attack), "rp:margin-pgd", "interval:crown", "interval:branch-and-bound(timeout=20)"]  # rp
    comparison = rp.compare(classifier, inputs, labels, rp.Linf(eps=EPS, clip=(0, 1)), names, seed=0)  # rp
    print(comparison)  # rp
    return comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--samples", type=int, default=100)
    run(**vars(parser.parse_args()))
