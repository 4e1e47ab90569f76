"""Our losses as trainers of ART. Imports ART: import this module inside functions only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.defences.trainer import Trainer
from torch.utils.data import DataLoader, TensorDataset

from robust_plugins.adapters.art.arrays import classes_in, drawn, moved_to
from robust_plugins.adapters.art.model import module_of
from robust_plugins.errors import ArgumentError
from robust_plugins.losses import MixedLoss
from robust_plugins.training import TrainingRecord, fit


class MixedTrainer(Trainer):  # type: ignore[misc] # ART is untyped
    """Trains a PyTorchClassifier of ART with a mixed loss, where ART has its adversarial trainers; made by `to_art`."""

    def __init__(self, classifier: Any, loss: MixedLoss) -> None:
        super().__init__(classifier)
        self.loss = loss
        module_of(classifier, loss.ball)
        if classifier.optimizer is None:
            raise ArgumentError(
                "estimator", "a PyTorchClassifier without an optimizer", accepted="one with an optimizer",
                hint="Pass optimizer=torch.optim.Adam(model.parameters(), lr=1e-3) to PyTorchClassifier.",
            )  # fmt: skip

    def fit(
        self, x: np.ndarray, y: np.ndarray, batch_size: int = 128, nb_epochs: int = 20, **options: Any
    ) -> TrainingRecord:
        """Trains the classifier in place with its optimizer; returns what `rp.fit` recorded.

        Preprocessing that the classifier applies in training alone, such as label smoothing, is applied once, as ART
        does. The order of samples is drawn from numpy's global state, attacks draw from torch's. `options` are those of
        `rp.fit`: `scheduler`, `evaluate`, `checkpoint`, `clip_gradient`, `accumulate`, `progress`.
        """
        model = module_of(self.classifier, self.loss.ball)
        assert model is not None  # the constructor has seen to it
        x, y = _prepared(self.classifier, x, y)
        inputs = moved_to(x, model).cpu()
        rows = np.asarray(y)
        soft = rows.ndim == 2 and rows.shape[1] > 1 and not bool(((rows == 0) | (rows == 1)).all())
        labels = torch.from_numpy(rows).to(inputs) if soft else classes_in(rows, self.classifier.nb_classes)
        order = torch.Generator().manual_seed(drawn())
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=batch_size, shuffle=True, generator=order)
        options = {"progress": False} | options
        return fit(model, loader, self.loss, epochs=nb_epochs, optimizer=self.classifier.optimizer, **options)

    def predict(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """The classifier's predictions, as ART's trainers give them."""
        logits: np.ndarray = self.classifier.predict(x, **options)
        return logits


def _prepared(classifier: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The data after the defences that are for training alone; those for predictions are a part of the model."""
    for defence in getattr(classifier, "preprocessing_operations", None) or ():
        if defence.apply_fit and not defence.apply_predict:
            x, y = defence(x, y)
    return x, y
