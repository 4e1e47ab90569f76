"""The mixed loss in a Hugging Face Trainer's `compute_loss`: `pip install "robust_plugins[transformers]"`.

python integration/training_loops/hugging_face_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import robust_plugins as rp


class Logits:
    """From images to logits, which is what the loss takes, for a model of the library, which returns a record.

    class ViT(Logits, ViTForImageClassification): ...
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        return super().forward(pixel_values=pixel_values).logits  # type: ignore[misc] # of the model it is mixed into


class RobustTrainer(Trainer):
    """A Trainer whose batches hold `pixel_values` and `labels`, and whose loss is `robust`.

    `model`: from images to logits. DistributedDataParallel, precision, accumulation and checkpoints are the Trainer's.
    """

    def __init__(self, model: nn.Module, robust: rp.MixedLoss, **arguments: Any) -> None:
        super().__init__(model=model, **arguments)
        self.robust, self.label_names = robust, ["labels"]
        self.add_callback(_Schedules(robust))
        # The loss is a batch's mean: Trainer has to divide it by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        x, y = inputs["pixel_values"], inputs["labels"]
        if model.training:
            # `model`, not self.model: DistributedDataParallel synchronises gradients in its own forward.
            return self.robust(model, x, y)
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss


class _Schedules(TrainerCallback):
    """Before each step of the optimizer, not after it: a resumed training starts where its checkpoint was."""

    def __init__(self, robust: rp.MixedLoss) -> None:
        self.robust = robust

    def on_step_begin(
        self, args: TrainingArguments, state: Any, control: Any, *, train_dataloader: Any, **others: Any
    ) -> None:
        epoch, part = divmod(state.epoch, 1)
        batches = len(train_dataloader)
        self.robust.step(int(epoch), round(part * batches) - 1, batches)


class Images(Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def main() -> None:
    torch.manual_seed(0)
    data = rp.dataset("digits")
    ball, epochs = rp.Linf(eps=0.1, clip=data.clip), 30
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=(64, 64))
    robust = rp.recipe("ibp", ball=ball, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=2e-3, max_grad_norm=10.0,
            remove_unused_columns=False, save_strategy="no", report_to=[], use_cpu=True,
        )  # fmt: skip
        RobustTrainer(model, robust, args=arguments, train_dataset=Images(data.x_train, data.y_train)).train()
    print(rp.Scores(x=data.x_test, y=data.y_test, ball=ball)(model))


if __name__ == "__main__":
    main()
