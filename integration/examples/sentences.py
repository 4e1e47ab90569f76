"""A text classifier in embedding space: how far may the meaning of a sentence drift before its topic changes?

    python integration/examples/sentences.py [--epochs 200]

The corpus is the list below. Words are weighted by TF-IDF, and a sentence is the weighted mean of its words' vectors,
of which the leading singular vectors of the corpus are the axes. The ball is Euclidean in that space: it stands for
words in the place of others that mean nearly the same. Sentences of the test are not trained on. Prints the bracket
of the accuracy at several radii, and the bracket of the radius at which each sentence changes its topic.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

import torch
from torch import Tensor

import robust_plugins as rp

COOKING = """
stir the onion in butter until soft
bake the bread in a hot oven for an hour
add salt and pepper to the soup and stir
slice the onion and fry it in hot butter
knead the dough and let it rest before you bake
simmer the soup with carrot and onion for an hour
melt the butter and stir in the flour
serve the bread warm with butter and salt
fry the carrot in oil and add pepper
let the dough rise and bake it in the oven
season the soup with salt before you serve
whisk the flour and the butter in a warm pan
roast the carrot with oil and salt in the oven
pour the soup over the warm bread
chop the onion and simmer it in oil
knead flour and salt to a soft dough
"""
SAILING = """
hoist the sail before the wind turns
steer the boat into the wind and drop the anchor
the wind fills the sail and the boat leans
tie the rope to the mast before you sail
drop the anchor in the calm harbour
the crew hauls the rope and trims the sail
a storm tore the sail from the mast
steer for the harbour when the storm comes
the boat rolls in the wave and the wind
trim the sail and steer by the wind
haul the anchor and hoist the sail
the crew ties the boat in the harbour
the mast broke when the storm hit the boat
the wave lifts the boat over the rope
sail with the wind and the wave to the harbour
the crew drops the sail before the storm
"""
AXES = 8
RADII = (0.1, 0.3, 0.5)
COMPONENTS = ("rp:margin-pgd", "interval:crown", "interval:branch-and-bound")


def corpus() -> tuple[list[list[str]], Tensor]:
    """The sentences as words, topics in turn, and their topics."""
    pairs = zip(COOKING.strip().splitlines(), SAILING.strip().splitlines(), strict=True)
    sentences = [sentence.split() for pair in pairs for sentence in pair]
    return sentences, torch.tensor([0, 1] * (len(sentences) // 2))


def embedded(sentences: list[list[str]], known: int) -> Tensor:
    """Vectors of length 1, from the words of the first `known` sentences alone."""
    documents = Counter(word for sentence in sentences[:known] for word in set(sentence))
    words = sorted(documents)
    weights = torch.tensor([math.log(known / documents[word]) for word in words])
    counts = torch.tensor([[sentence.count(word) for word in words] for sentence in sentences]) * weights
    counts = torch.nn.functional.normalize(counts, dim=1)
    axes = torch.linalg.svd(counts[:known], full_matrices=False).Vh[:AXES]
    return torch.nn.functional.normalize(counts @ axes.mT, dim=1)


def compared(*, epochs: int, seed: int = 0) -> tuple[list[rp.Comparison], rp.CriticalRadius]:
    sentences, topics = corpus()
    x = embedded(sentences, 20)
    torch.manual_seed(seed)
    model = rp.model("mlp(widths=(16, 16))", input_shape=(AXES,), classes=2)
    rp.train(model, x[:20], topics[:20], epochs=epochs, lr=1e-2, seed=seed)
    held, right = x[20:], topics[20:]
    found = [rp.compare(model, held, right, rp.L2(eps=eps, clip=None), COMPONENTS, seed=seed) for eps in RADII]
    ball = rp.L2(eps=1, clip=None)
    return found, rp.critical_radius(["rp:margin-pgd", "interval:crown"], model, held, right, ball, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    comparisons, radii = compared(epochs=parser.parse_args().epochs)
    for comparison in comparisons:
        print(f"{comparison}\n")
    print(radii)


if __name__ == "__main__":
    main()
