"""What each of two processes runs for ``test_two_processes.py``: one adapter, on a half of the data each."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import pqk_ext
from pqk_ext.distributed import check_in_sync, synchronize

FOLDER = Path(sys.argv[2])
STEPS = 12


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(0, 3, (48,), generator=generator)
    return torch.randn(48, 1, 6, 6, generator=generator) * (1 + y[:, None, None, None]), y


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        x, y = data()
        return x[index], y[index]


class Records(Pairs):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"pixel_values": x, "labels": y}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 3)
    )
    config = pqk_ext.PQKConfig(sparsity=0.6, total_steps=STEPS, mask_update_interval=2, warmup_fraction=0.4)
    return pqk_ext.prepare(net, config, example_inputs=data()[0][:4])


def groups(prepared: Any) -> Any:
    return prepared.pqk.parameter_groups(0.01)


def with_lightning() -> torch.nn.Module:
    import lightning.pytorch as lightning

    from pqk_ext.integrations.lightning import PQKCallback

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model.pqk.loss(*batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(groups(self.model))

    net = Net()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PQKCallback(FOLDER / "net.pqk", log=False)],
    )
    trainer.fit(net, DataLoader(Pairs(), batch_size=8))
    return net.model


def with_accelerate() -> torch.nn.Module:
    from accelerate import Accelerator

    from pqk_ext.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    prepared = model()
    loader = DataLoader(Pairs(), batch_size=8)
    objective, optimizer, loader = prepare(accelerator, prepared, torch.optim.AdamW(groups(prepared)), loader)
    for _ in range(4):
        for x, y in loader:
            accelerator.backward(objective(x, y))
            optimizer.step()
            optimizer.zero_grad()
    synchronize(prepared)
    if accelerator.is_main_process:
        pqk_ext.export(objective, FOLDER / "net.pqk")
    return pqk_ext.unwrap(objective)


def with_transformers() -> torch.nn.Module:
    from transformers import TrainingArguments

    from pqk_ext.integrations.transformers import PQKTrainer

    prepared = model()
    arguments = TrainingArguments(
        output_dir=str(FOLDER),
        num_train_epochs=4,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    PQKTrainer(prepared, arguments, train_dataset=Records(), path=FOLDER / "net.pqk").train()
    return prepared


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", ".*(PQK|quantizers)")
    trained = {"lightning": with_lightning, "accelerate": with_accelerate, "transformers": with_transformers}[
        sys.argv[1]
    ]()
    controller = pqk_ext.controller(trained)
    assert controller.global_step == STEPS
    assert abs(controller.sparsity - 0.6) < 0.02
    synchronize(trained)  # running statistics, which each process has of its own last batch
    check_in_sync(trained)
    print("in sync")
