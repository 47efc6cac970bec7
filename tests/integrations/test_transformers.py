"""The Trainer of transformers gives the bits of the bare loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import pqk_ext

from .conftest import BATCH, STEPS, TinyProblem

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install .[integrations]")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install .[integrations]")
from pqk_ext.integrations.transformers import ModelForTrainer, PQKTrainer, PQKTrainerCallback  # noqa: E402

SameBits = Callable[[nn.Module, nn.Module], None]


class Records(Dataset[Any]):
    """As transformers wants them; in the order of the bare loop."""

    def __init__(self, problem: TinyProblem) -> None:
        self.x, self.y = problem.tensors()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def arguments(problem: TinyProblem, folder: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": problem.epochs,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.01,
        "optim": "adamw_torch",  # the default is a fused one, which rounds otherwise
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 4,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(**values | changes)


def test_training_evaluation_file_and_logs(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    model = problem.model()
    data = Records(problem)
    trainer = PQKTrainer(
        model, arguments(problem, tmp_path), train_dataset=data, eval_dataset=data, path=tmp_path / "net.pqk"
    )
    trainer.train()
    assert_same_bits(model, problem.bare_loop())
    pqk_ext.assert_parity(model, tmp_path / "net.pqk", data.x)
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["pqk/phase"] for entry in losses] == [1, 1, 2, 2, 2, 2]
    assert losses[-1]["pqk/sparsity"] == pytest.approx(0.6, abs=0.01)
    evaluated = trainer.evaluate()
    logits = model.eval()(data.x)
    assert evaluated["eval_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.y)), rel=1e-5)
    predictions = trainer.predict(data).predictions
    assert torch.equal(torch.from_numpy(predictions), logits)


def test_accumulation_and_clipping(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    model = problem.model(STEPS // 2)
    settings = arguments(problem, tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.5)
    PQKTrainer(model, settings, train_dataset=Records(problem)).train()
    assert_same_bits(
        model, problem.bare_loop(accumulate=2, clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5))
    )


def test_the_callback_with_a_plain_trainer(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    model = problem.model()
    trainer = transformers.Trainer(
        ModelForTrainer(model),
        arguments(problem, tmp_path),
        train_dataset=Records(problem),
        optimizers=(problem.optimizer(model), None),
        callbacks=[PQKTrainerCallback(tmp_path / "net.pqk")],
    )
    trainer.train()
    assert_same_bits(model, problem.bare_loop())
    assert (tmp_path / "net.pqk").exists()
    assert [entry["pqk/phase"] for entry in trainer.state.log_history if "loss" in entry] == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("channels_last", [False, True])
def test_resume_from_the_trainers_checkpoint(
    channels_last: bool, problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path
) -> None:
    def trainer(**changes: Any) -> Any:
        model = problem.model()
        if channels_last:
            model.to(memory_format=torch.channels_last)
        return PQKTrainer(model, arguments(problem, tmp_path, **changes), train_dataset=Records(problem))

    first = trainer(save_strategy="steps", save_steps=10)
    first.train()
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert pqk_ext.controller(again.model).global_step == STEPS
    assert_same_bits(again.model, pqk_ext.unwrap(first.model))


def test_what_would_go_wrong_silently(problem: TinyProblem, tmp_path: Path) -> None:
    data = Records(problem)
    plain = transformers.Trainer(
        ModelForTrainer(problem.model()),
        arguments(problem, tmp_path),
        train_dataset=data,
        callbacks=[PQKTrainerCallback()],
    )
    with pytest.warns(UserWarning, match="decays the step sizes of quantizers"):
        plain.train()
    with pytest.warns(UserWarning, match="24 optimizer steps left, the schedule of PQK 30"):
        PQKTrainer(problem.model(30), arguments(problem, tmp_path), train_dataset=data).train()
    own_loss = PQKTrainer(
        problem.model(), arguments(problem, tmp_path), train_dataset=data, compute_loss_func=lambda *_, **__: None
    )
    with pytest.raises(ValueError, match="compute_loss_func takes them away"):
        own_loss.train()
    with pytest.raises(ValueError, match="input_values or input_features, got 0"):
        ModelForTrainer(problem.model())(labels=data.y)


def test_tied_weights_are_saved(problem: TinyProblem, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    model = ModelForTrainer(pqk_ext.prepare(net, problem.config, example_inputs=torch.randn(4, 6)))
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    model.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
