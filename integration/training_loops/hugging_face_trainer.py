"""The mixed loss in a Hugging Face Trainer's `compute_loss`: `pip install "robust_plugins[transformers]"`.

python integration/training_loops/hugging_face_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import robust_plugins as rp


class Logits(nn.Module):
    """A model of the library, which returns a record, as one from images to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


class RobustTrainer(Trainer):
    """A Trainer whose batches hold `pixel_values` and `labels`, and whose loss is `robust`."""

    def __init__(self, model: nn.Module, robust: rp.MixedLoss, **arguments: Any) -> None:
        # One wrapper for the whole training: a certifier traces the graph of each module once.
        self.robust, self.logits = robust, Logits(model) if isinstance(model, PreTrainedModel) else model
        super().__init__(model=model, **arguments)
        self.add_callback(_Schedules(robust))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        x, y = inputs["pixel_values"], inputs["labels"]
        if model.training:
            return self.robust(self.logits, x, y)
        logits = self.logits(x)
        loss = nn.functional.cross_entropy(logits, y)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss


class _Schedules(TrainerCallback):
    def __init__(self, robust: rp.MixedLoss) -> None:
        self.robust = robust

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **others: Any) -> None:
        steps = max(1, round(state.max_steps / args.num_train_epochs))  # of the optimizer, in an epoch
        self.robust.step(0, state.global_step - 1, steps)


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
            remove_unused_columns=False, label_names=["labels"], save_strategy="no", report_to=[], use_cpu=True,
        )  # fmt: skip
        RobustTrainer(model, robust, args=arguments, train_dataset=Images(data.x_train, data.y_train)).train()
    print(rp.Scores(x=data.x_test, y=data.y_test, ball=ball)(model))


if __name__ == "__main__":
    main()
