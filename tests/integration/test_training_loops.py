"""The mixed loss in other people's training loops: the same weights as in a bare loop."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from test_explanation_scripts import script
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp

EPOCHS, RATE = 3, 0.1
BALL = rp.Linf(eps=0.1, clip=(0, 1))


def _imported(*names: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say while they are imported is theirs
        for name in names:
            pytest.importorskip(name)


def _case() -> tuple[nn.Module, rp.MixedLoss, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.rand(40, 6)
    schedule = rp.Ramp(start=0.5, end=2, shape="linear")
    return model, rp.MixedLoss(worst="interval:ibp", gamma=0.5, ball=BALL, schedule=schedule), x, (3 * x[:, 0]).long()


def _expected() -> nn.Module:
    model, loss, x, y = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before = copy.deepcopy(model)
    rp.fit(
        model, DataLoader(TensorDataset(x, y), batch_size=8), loss, epochs=EPOCHS, optimizer=optimizer, progress=False
    )
    assert not torch.allclose(model[0].weight, before[0].weight, atol=1e-2)
    return model


@pytest.mark.filterwarnings("ignore")
def test_lightning() -> None:
    _imported("pytorch_lightning")
    import pytorch_lightning as pl

    module = script("training_loops/lightning_module.py")
    model, loss, x, y = _case()

    class Plain(module.Robust):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=self.lr)

    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_model_summary=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(Plain(model, loss, lr=RATE), DataLoader(TensorDataset(x, y), batch_size=8))
    torch.testing.assert_close(model.state_dict(), _expected().state_dict())
    assert trainer.callback_metrics["eps"] > 0.09
    assert loss.epoch == EPOCHS


@pytest.mark.filterwarnings("ignore")
def test_hugging_face(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    from transformers import TrainingArguments

    module = script("training_loops/hugging_face_trainer.py")
    model, loss, x, y = _case()
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=8, max_grad_norm=0.0, use_cpu=True,
        remove_unused_columns=False, save_strategy="no", report_to=[], disable_tqdm=True,
        train_sampling_strategy="sequential", label_names=["labels"],
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = module.RobustTrainer(
        model, loss, args=arguments, train_dataset=module.Images(x, y), optimizers=(optimizer, constant)
    )
    trainer.train()
    torch.testing.assert_close(model.state_dict(), _expected().state_dict())
    assert loss.epoch == EPOCHS
    assert trainer.evaluate(module.Images(x, y))["eval_loss"] < 1.2


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_with_a_model_of_the_library(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

    module = script("training_loops/hugging_face_trainer.py")
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=2, **sizes))
    x = torch.rand(16, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True, remove_unused_columns=False,
        save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    loss = rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)
    found = module.RobustTrainer(model, loss, args=arguments, train_dataset=module.Images(x, y)).train()
    assert 0 < found.training_loss < 3
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
