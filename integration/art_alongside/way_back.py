"""The way back: attacks, losses and certificates of robust_plugins inside ART's trainers and metrics.

    python -m integration.art_alongside.way_back

Three classifiers of ART, trained by ART's adversarial trainer with an attack of ours, by a loss of ours in the place of
that trainer, and not robustly at all; and for each what ART's metrics say beside what is proved:

- `adversarial_accuracy` by ART's PGD and by an attack of ours, with the share below which it cannot fall;
- the mean distance of the nearest example that is found, the mean radius within which there is none, and the mean
  CLEVER score, which estimates that radius from samples of the gradient's norm;
- for how many images the CLEVER score is above the distance of an example, and so wrong.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from art.metrics import adversarial_accuracy, clever_u

import robust_plugins as rp
from integration.art_alongside.existing_script import EPS, classifier_for, digits

BALL = rp.Linf(eps=EPS, clip=(0, 1))
FAR = rp.Linf(eps=0.5, clip=(0, 1))


@dataclass(frozen=True)
class Row:
    """A classifier beside ART's metrics and our certificates."""

    name: str
    clean: float
    pgd: float
    ours: float
    proved: float
    distance: float
    radius: float
    clever: float
    refuted: int
    """The number of images whose CLEVER score is above the distance of an example."""


def trained(kind: str, x: np.ndarray, y: np.ndarray, epochs: int) -> PyTorchClassifier:
    """A classifier trained as `kind` says: "standard", "our attack" or "our loss"."""
    np.random.seed(0)  # noqa: NPY002 (as scripts of ART do)
    classifier = classifier_for(x)
    if kind == "standard":
        classifier.fit(x, y, nb_epochs=epochs)
    elif kind == "our attack":
        attack = rp.to_art("rp:pgd(steps=10)", classifier, ball=BALL)
        AdversarialTrainer(classifier, attack, ratio=0.5).fit(x, y, nb_epochs=epochs)
    else:
        loss = rp.recipe("ibp", ball=BALL, epochs=epochs, schedule=rp.Ramp(start=0, end=0.7 * epochs))
        rp.to_art(loss, classifier).fit(x, y, nb_epochs=epochs)
    return classifier


def row(name: str, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, clever: int) -> Row:
    """What ART's metrics and the certificates say of the classifier; CLEVER, which is slow, of the first images."""
    pgd = ProjectedGradientDescent(classifier, eps=EPS, eps_step=EPS / 5, max_iter=20, verbose=False)
    ours = rp.to_art("rp:margin-pgd", classifier, ball=BALL, seed=0)
    nearest = rp.to_art("rp:margin-pgd(steps=20)", classifier, ball=FAR, minimal=True, seed=0)
    certifier = rp.to_art("interval:crown", classifier, ball=BALL)
    decisions = classifier.predict(x).argmax(1)
    distances = np.abs(nearest.generate(x, decisions) - x).reshape(len(x), -1).max(1)
    _, radii = rp.to_art("interval:crown", classifier, ball=FAR).certify(x, tolerance=0.001)
    scores = [clever_u(classifier, image, 5, 50, FAR.eps, norm=np.inf, verbose=False) for image in x[:clever]]
    return Row(
        name=name,
        clean=float((decisions == y).mean()),
        pgd=float(adversarial_accuracy(classifier, x, y, attack_crafter=pgd)),
        ours=float(adversarial_accuracy(classifier, x, y, attack_crafter=ours)),
        proved=certifier.adversarial_accuracy(x, y),
        distance=float(distances.mean()),
        radius=float(radii.mean()),
        clever=float(np.mean(scores)),
        refuted=int((np.array(scores) > distances[:clever]).sum()),
    )


def run(epochs: int = 20, samples: int = 100, clever: int = 20) -> list[Row]:
    """Trains, measures and prints the table."""
    x_train, y_train, x_test, y_test = digits()
    x, y = x_test[:samples], y_test[:samples]
    rows = [row(k, trained(k, x_train, y_train, epochs), x, y, clever) for k in ("standard", "our attack", "our loss")]
    print(
        f"ART's adversarial_accuracy at eps {EPS}, of those of {samples} images that are decided rightly, and distances"
    )
    heads = ("clean", "PGD", "ours", "proved", "nearest", "radius", "CLEVER")
    print(f"{'training':12}", *(f"{head:>7}" for head in heads), "  refuted")
    for r in rows:
        numbers = (r.clean, r.pgd, r.ours, r.proved, r.distance, r.radius, r.clever)
        print(f"{r.name:12}", *(f"{number:7.3f}" for number in numbers), f"  {r.refuted} of {clever}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--clever", type=int, default=20, help="images whose CLEVER score is computed")
    run(**vars(parser.parse_args()))
