"""The mixed loss in other people's training loops: the same weights as in a bare loop."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.scripts import script
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


class Recorded(rp.MixedLoss):
    """Keeps the epoch of every batch."""

    def __call__(self, *batch: Any) -> Tensor:
        self.epochs = [*getattr(self, "epochs", []), self.epoch]
        return super().__call__(*batch)


def _recorded() -> tuple[nn.Module, Recorded, Tensor, Tensor]:
    model, loss, x, y = _case()
    return model, Recorded(worst=loss.worst, gamma=loss.gamma, ball=BALL, schedule=loss.schedule), x, y


def _expected() -> nn.Module:
    model, loss, x, y = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before = copy.deepcopy(model)
    rp.fit(
        model, DataLoader(TensorDataset(x, y), batch_size=8), loss, epochs=EPOCHS, optimizer=optimizer, progress=False
    )
    assert not torch.allclose(model[0].weight, before[0].weight, atol=1e-2)
    return model


def _lightning(model: nn.Module, loss: rp.MixedLoss, x: Tensor, y: Tensor, size: int = 8, *,
               resume: Path | None = None, **settings: Any) -> Any:  # fmt: skip
    import pytorch_lightning as pl

    class Plain(script("training_loops/lightning_module.py").Robust):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=self.lr)

    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_model_summary=False,
                         enable_progress_bar=False, **{"enable_checkpointing": False} | settings)  # fmt: skip
    trainer.fit(Plain(model, loss, lr=RATE), DataLoader(TensorDataset(x, y), batch_size=size), ckpt_path=resume)
    return trainer


def _hugging_face(folder: Path, model: nn.Module, loss: rp.MixedLoss, x: Tensor, y: Tensor, size: int = 8, *,
                  resume: Path | None = None, **settings: Any) -> Any:  # fmt: skip
    from transformers import TrainingArguments

    module = script("training_loops/hugging_face_trainer.py")
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=size, max_grad_norm=0.0, use_cpu=True, report_to=[], disable_tqdm=True,
        train_sampling_strategy="sequential", optim="sgd", learning_rate=RATE, lr_scheduler_type="constant",
        **{"save_strategy": "no", "remove_unused_columns": False} | settings,
    )  # fmt: skip
    trainer = module.RobustTrainer(model, loss, args=arguments, train_dataset=module.Images(x, y))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning() -> None:
    _imported("pytorch_lightning")
    model, loss, x, y = _recorded()
    trainer = _lightning(model, loss, x, y)
    torch.testing.assert_close(model.state_dict(), _expected().state_dict())
    assert trainer.callback_metrics["eps"] > 0.09
    assert loss.epochs == pytest.approx([batch / 5 for batch in range(5 * EPOCHS)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [5, 7])
def test_lightning_resumes_its_schedules(steps: int, tmp_path: Path) -> None:
    _imported("pytorch_lightning")
    from pytorch_lightning.callbacks import ModelCheckpoint

    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    _lightning(*_case(), callbacks=[save], enable_checkpointing=True)
    model, loss, x, y = _recorded()
    _lightning(model, loss, x, y, resume=tmp_path / f"step={steps}.ckpt")
    assert loss.epochs == pytest.approx([batch / 5 for batch in range(steps, 5 * EPOCHS)])
    if steps == 5:  # within an epoch, Lightning begins with the loader's first batch again
        torch.testing.assert_close(model.state_dict(), _expected().state_dict())


@pytest.mark.filterwarnings("ignore")
def test_hugging_face(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    model, loss, x, y = _recorded()
    trainer = _hugging_face(tmp_path, model, loss, x, y, num_train_epochs=EPOCHS)
    torch.testing.assert_close(model.state_dict(), _expected().state_dict())
    assert loss.epochs == pytest.approx([batch / 5 for batch in range(5 * EPOCHS)])
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < 1.2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [5, 7])
def test_hugging_face_resumes_its_schedules(steps: int, tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    how: dict[str, Any] = {"num_train_epochs": EPOCHS, "save_strategy": "steps", "save_steps": steps}
    _hugging_face(tmp_path, *_case(), **how)
    model, loss, x, y = _recorded()
    _hugging_face(tmp_path, model, loss, x, y, **how, resume=tmp_path / f"checkpoint-{steps}")
    assert loss.epochs == pytest.approx([batch / 5 for batch in range(steps, 5 * EPOCHS)])
    torch.testing.assert_close(model.state_dict(), _expected().state_dict())


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_counts_epochs_where_steps_are_given(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    model, loss, x, y = _recorded()
    _hugging_face(tmp_path, model, loss, x, y, max_steps=7)
    assert loss.epochs == pytest.approx([batch / 5 for batch in range(7)])


class Keywords(nn.Sequential):
    """Takes keywords, as models of transformers do, by which Trainer knows those that divide the loss themselves."""

    def forward(self, x: Tensor, **others: Any) -> Tensor:
        return super().forward(x)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_accumulates_the_mean(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    found = []
    for size, batches in ((20, 1), (10, 2)):
        model, _, x, y = _case()
        model, loss = Keywords(*model), rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)
        _hugging_face(tmp_path, model, loss, x, y, size, num_train_epochs=2, gradient_accumulation_steps=batches)
        found.append(model.state_dict())
    torch.testing.assert_close(*found)


def _vision_transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    class ViT(script("training_loops/hugging_face_trainer.py").Logits, ViTForImageClassification):
        pass

    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    return ViT(ViTConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=2, **sizes))


def _images() -> tuple[Tensor, Tensor]:
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) > 0.5).long()


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_with_a_model_of_the_library(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    from transformers import ViTForImageClassification

    model, (x, y) = _vision_transformer(), _images()
    before = copy.deepcopy(model.state_dict())
    loss = rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)
    trainer = _hugging_face(tmp_path, model, loss, x, y, num_train_epochs=2, remove_unused_columns=True)
    assert all(0 < entry["train_loss"] < 3 for entry in trainer.state.log_history)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < 3
    trainer.save_model(str(tmp_path / "saved"))
    again = ViTForImageClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(pixel_values=x).logits, model.eval()(x))


def _trained(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """After batches of 8 in all, from every process."""
    found = []
    for batches in (1, 2):
        size = 8 // processes // batches
        model, loss, x, y = _case()
        _hugging_face(folder, model, loss, x, y, size, num_train_epochs=EPOCHS, gradient_accumulation_steps=batches)
        found.append(model.state_dict())
    model, (x, y) = _vision_transformer(), _images()
    loss = rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)
    _hugging_face(folder, model, loss, x, y, 8 // processes, num_train_epochs=2)
    return [*found, model.state_dict()]


def _rank(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        torch.save(_trained(folder, 2), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_in_two_processes_gives_the_weights_of_one(tmp_path: Path) -> None:
    _imported("accelerate", "transformers")
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, _trained(tmp_path, 1))
