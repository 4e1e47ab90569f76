"""The main job on real data: train a small network on handwritten digits, then attack and certify it side by side.

`python -m robust_plugins.demo` prints one table and writes one page.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import torch
from rich.console import Console

from robust_plugins.balls import Linf
from robust_plugins.brackets import compare, write_report
from robust_plugins.brackets.pages import check_page
from robust_plugins.data import dataset
from robust_plugins.errors import RobustPluginsError
from robust_plugins.networks import model as model_named
from robust_plugins.networks import train

PAGE = "demo.html"
RADII = (0.01, 0.03, 0.06)
# Five steps of alpha-CROWN instead of twenty: nearly all that it gains on this network, in seconds.
COMPONENTS = ["art:fgsm", "art:pgd", "lirpa:ibp", "lirpa:crown-ibp", "lirpa:crown", "lirpa:alpha-crown(steps=5)"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), help="The folder of the page.")
@click.option("--samples", default=50, show_default=True, help="How many test images.")
@click.option("--epochs", default=30, show_default=True, help="How long to train.")
def main(out: Path, samples: int, epochs: int) -> None:
    """Attacks and certificates for the same network and the same images of digits."""
    try:
        crossed = run(out, samples, epochs)
    except RobustPluginsError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    sys.exit(3 if crossed else 0)


def run(out: Path, samples: int, epochs: int) -> bool:
    """Prints the table and writes the page; whether an attack contradicts a certificate.

    Raises ArgumentError, before anything is computed, where the page would replace somebody else's file.
    """
    check_page(out / PAGE)
    say = Console(file=sys.stderr, highlight=False)
    start = time.perf_counter()
    digits = dataset("digits")
    torch.manual_seed(0)
    network = model_named("cnn", input_shape=digits.input_shape, classes=digits.classes)
    say.print(f"training a small CNN on {len(digits.x_train)} images of digits ...")
    train(network, digits.x_train, digits.y_train, epochs=epochs, seed=0)
    network.eval()
    x, y = digits.x_test[:samples], digits.y_test[:samples]
    say.print(f"attacking and certifying {len(x)} test images at eps = {', '.join(map(str, RADII))} ...")
    balls = [Linf(eps=eps, clip=digits.clip) for eps in RADII]
    comparisons = compare(network, x, y, balls, COMPONENTS, seed=0, progress=True)
    about = {
        "model": f"a small CNN of robust_plugins.networks, trained for {epochs} epochs with Adam",
        "data": f"the first {len(x)} test images of scikit-learn's digits, 8 x 8 pixels in [0, 1]",
        "command": f"python -m robust_plugins.demo --samples {samples} --epochs {epochs}",
    }
    title = "A small CNN on digits, attacked and certified"
    page = write_report(out / PAGE, comparisons, title=title, about=about)
    print(comparisons)
    print(f"The page with plot and attacked images: {page} ({time.perf_counter() - start:.0f} s in all)")
    return bool(comparisons.crossings)


if __name__ == "__main__":
    main()
