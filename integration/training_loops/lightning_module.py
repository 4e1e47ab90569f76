"""The mixed loss in a Lightning module: `pip install "robust_plugins[lightning]"`.

python integration/training_loops/lightning_module.py
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp


class Robust(pl.LightningModule):
    """Trains `model`. Epochs, devices, precision, clipping and accumulation are the Trainer's as ever."""

    def __init__(self, model: nn.Module, loss: rp.MixedLoss, *, lr: float) -> None:
        super().__init__()
        self.model, self.loss, self.lr = model, loss, lr

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        # Before the batch, not after it: a resumed training starts where its checkpoint was.
        self.loss.step(self.current_epoch, index - 1, int(self.trainer.num_training_batches))
        value = self.loss(self.model, *batch)
        terms = value.terms  # type: ignore[attr-defined]
        self.log_dict({"loss": value, "clean": terms.clean, "eps": terms.eps, "gamma": terms.gamma}, on_epoch=True)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


def main() -> None:
    torch.manual_seed(0)
    data = rp.dataset("digits")
    ball, epochs = rp.Linf(eps=0.1, clip=data.clip), 30
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=(64, 64))
    loss = rp.recipe("ibp", ball=ball, epochs=epochs)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", gradient_clip_val=10.0, logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    loader = DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=64, shuffle=True)
    trainer.fit(Robust(model, loss, lr=2e-3), loader)
    print(rp.Scores(x=data.x_test, y=data.y_test, ball=ball)(model))


if __name__ == "__main__":
    main()
