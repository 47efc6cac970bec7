"""Lightning's trainer with the callback gives the bits of the bare loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqk_ext

from .conftest import STEPS, TinyProblem

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: pip install .[integrations]")
from pqk_ext.integrations.lightning import PQKCallback  # noqa: E402

# Lightning warns of few workers and of its own dependencies: only the package's own warnings are errors here.
pytestmark = pytest.mark.filterwarnings("default", "error:.*PQK", "error:.*quantizers")


class Net(lightning.LightningModule):
    def __init__(self, problem: TinyProblem, total_steps: int = STEPS) -> None:
        super().__init__()
        self.problem = problem
        self.model = problem.model(total_steps)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.model.pqk.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.problem.optimizer(self.model)


class ValidatedNet(Net):
    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())


def trainer(problem: TinyProblem, folder: Path, *callbacks: Any, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_epochs": problem.epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return lightning.Trainer(**arguments | changes)


SameBits = Callable[[nn.Module, nn.Module], None]


def test_training_validation_file_and_logs(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    net = ValidatedNet(problem)
    logger = CSVLogger(tmp_path)
    run = trainer(problem, tmp_path, PQKCallback(tmp_path / "net.pqk"), logger=logger, log_every_n_steps=4)
    run.fit(net, problem.loader(), problem.loader())
    assert_same_bits(net, problem.bare_loop())
    pqk_ext.assert_parity(net, tmp_path / "net.pqk", problem.tensors()[0])
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    logged = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    phases = [float(row["pqk/phase"]) for row in logged if row["pqk/phase"]]
    assert phases == [1, 1, 2, 2, 2, 2]  # after steps 4, 8, ...: phase 2 begins at 12
    assert float(logged[-1]["pqk/sparsity"] or logged[-2]["pqk/sparsity"]) == pytest.approx(0.6, abs=0.01)
    assert [row["accuracy"] for row in logged if row["accuracy"]]


def test_accumulation_and_clipping(problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path) -> None:
    net = Net(problem, STEPS // 2)
    run = trainer(
        problem,
        tmp_path,
        PQKCallback(log=False),
        accumulate_grad_batches=2,
        gradient_clip_val=0.01,
        gradient_clip_algorithm="value",
    )
    run.fit(net, problem.loader())
    assert_same_bits(
        net, problem.bare_loop(accumulate=2, clip=lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01))
    )


@pytest.mark.parametrize("epoch", [1, 3])
def test_resume_from_lightnings_checkpoint(
    epoch: int, problem: TinyProblem, assert_same_bits: SameBits, tmp_path: Path
) -> None:
    first = trainer(problem, tmp_path, PQKCallback(), max_epochs=epoch, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=rf"{epoch * 6} optimizer steps left, the schedule of PQK 24"):
        first.fit(Net(problem), problem.loader())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    net = Net(problem)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    trainer(problem, tmp_path, PQKCallback()).fit(net, problem.loader(), ckpt_path=checkpoint)
    assert net.model.pqk.global_step == STEPS
    assert_same_bits(net, problem.bare_loop())


def test_a_module_with_two_prepared_models(problem: TinyProblem, tmp_path: Path) -> None:
    net = Net(problem)
    net.other = problem.model()
    with pytest.raises(ValueError, match=r"found \['model', 'other'\]"):
        trainer(problem, tmp_path, PQKCallback()).fit(net, problem.loader())
    trainer(problem, tmp_path, PQKCallback(model="model"), max_epochs=4).fit(net, problem.loader())
    assert (net.model.pqk.global_step, net.other.pqk.global_step) == (STEPS, 0)


def test_decayed_step_sizes_are_warned_of(problem: TinyProblem, tmp_path: Path) -> None:
    net = Net(problem)
    net.configure_optimizers = lambda: torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    with pytest.warns(UserWarning, match="decays the step sizes of quantizers.*parameter_groups"):
        trainer(problem, tmp_path, PQKCallback()).fit(net, problem.loader())


def test_averaged_weights_are_validated_and_shipped(problem: TinyProblem, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import WeightAveraging
    from torch.optim.swa_utils import get_ema_avg_fn

    net, average = ValidatedNet(problem), WeightAveraging(multi_avg_fn=pqk_ext.ema_multi_avg_fn(0.7))
    run = trainer(problem, tmp_path, PQKCallback(tmp_path / "net.pqk"), average)
    run.fit(net, problem.loader(), problem.loader())
    last = problem.bare_loop()
    first, of_last = net.model.get_submodule("0"), last.get_submodule("0")
    assert torch.equal(first.weight_mask, of_last.weight_mask)
    assert not torch.equal(first.weight, of_last.weight)
    pqk_ext.assert_parity(net, tmp_path / "net.pqk", problem.tensors()[0])

    nonsense = trainer(problem, tmp_path, PQKCallback(), WeightAveraging(avg_fn=get_ema_avg_fn()))
    with pytest.raises(ValueError, match="would average the pruning masks"):
        nonsense.fit(Net(problem), problem.loader())
