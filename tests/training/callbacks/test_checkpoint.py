"""The best checkpoint of runs whose held-out metric is written beforehand."""

from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state
from efficientsam_pl.commands import consolidate
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT, read_weights
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.training import train as training
from efficientsam_pl.training.callbacks.checkpoint import nameable_metrics

NAN = float("nan")


class Scripted(L.Callback):
    """Logs a value a step, and keeps the weights that it is of."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values
        self.first_weights: dict[int, torch.Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        pl_module.log(self.name, self.values[step - 1])
        self.first_weights[step] = next(pl_module.model.parameters()).detach().clone()


@pytest.fixture
def scripted(run: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs with values of a metric: scripted(name, values, "key=value", ..., stop_after=3)."""
    standard = training.standard_callbacks

    def start(name: str, values: list[float], *overrides: str, **given: Any) -> Scripted:
        callback = Scripted(name, values)
        monkeypatch.setattr(PretrainConfig, "metrics", lambda config: (name,))
        monkeypatch.setattr(
            training, "standard_callbacks", lambda *args: [callback, *standard(*args)]
        )
        run(
            "pretrain",
            tmp_path / "run",
            f"data.heldout={shards}/heldout-*.tar",
            f"trainer.best_metric={name}",
            "trainer.validate_every_steps=1",
            *overrides,
            **given,
        )
        return callback

    return start


def best_of(folder: Path) -> tuple[int, dict[str, Any]]:
    """The step of the best checkpoint, and what it holds."""
    stored = CheckpointReader(folder / (folder / "best").read_text().strip())
    loaded = join_state(stored.load_all(), stored.values)
    assert stored.folder.name == f"step-{loaded['global_step']:08d}"
    return loaded["global_step"], loaded


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("heldout/box_miou", [0.1, 0.5, NAN, 0.3, 0.7, 0.2], 5),  # no checkpoint is due at 5
        ("heldout/box_miou", [0.1, 0.5, 0.8, 0.3, 0.7, 0.2], 3),  # one is due at 3
        ("heldout/box_miou", [0.4, 0.4, NAN, 0.4, 0.4, 0.4], 1),  # the first of equals
        ("heldout/box_miou", [NAN, NAN, NAN, -0.4, NAN, NAN], 4),
        ("heldout/other_loss", [0.4, 0.3, 0.5, 0.1, 0.2, NAN], 4),
    ],
)
def test_best_checkpoint_is_kept_whatever_is_removed(
    name: str, values: list[float], best: int, scripted: Any, tmp_path: Path
) -> None:
    callback = scripted(name, values, "trainer.checkpoints_kept=1")
    step, checkpoint = best_of(tmp_path / "run")
    assert step == best
    weights = checkpoint["state_dict"]
    own = next(key for key in weights if key.startswith("model."))
    assert torch.equal(weights[own], callback.first_weights[best])
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2
    assert checkpoint[FORMAT]["losses"][name] == pytest.approx(values[best - 1])


def test_values_that_are_no_number_leave_no_best(scripted: Any, tmp_path: Path) -> None:
    scripted("heldout/box_miou", [NAN] * 6)
    assert not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/latest").exists()


def test_best_value_survives_a_resume(scripted: Any, tmp_path: Path) -> None:
    """It was measured after the checkpoint of the very step from which the run resumes."""
    scripted("heldout/box_miou", [0.1, 0.2, 0.9, 0, 0, 0], stop_after=3)
    assert best_of(tmp_path / "run")[0] == 3
    scripted("heldout/box_miou", [0, 0, 0, 0.8, 0.7, 0.6])
    assert best_of(tmp_path / "run")[0] == 3
    state = CheckpointReader(tmp_path / "run/checkpoints/step-00000006").values
    assert state["callbacks"]["RunCheckpoints"]["best"] == pytest.approx(0.9)


def test_another_metric_begins_anew(scripted: Any, tmp_path: Path) -> None:
    scripted("heldout/box_miou", [0.9] * 6, stop_after=3)
    scripted("heldout/ap", [0.1] * 6)
    assert best_of(tmp_path / "run")[0] == 4


class LoggedNames(L.Callback):
    """Notes the metrics that can be seen at the end of a validation."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.names |= set(nameable_metrics(trainer, pl_module))


@pytest.mark.parametrize(
    ("stage", "root"), [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)]
)
def test_every_metric_that_can_be_named_is_logged(
    stage: str, root: Any, run: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, standard = LoggedNames(), training.standard_callbacks
    monkeypatch.setattr(training, "standard_callbacks", lambda *args: [*standard(*args), noted])
    heldout = f"data.heldout={shards}/heldout-*.tar"
    run(stage, tmp_path, heldout, "trainer.max_steps=3")
    assert noted.names >= set(root().metrics())


def test_best_can_be_consolidated(scripted: Any, tmp_path: Path) -> None:
    scripted("heldout/box_miou", [0.1, 0.9, 0.3, 0.3, 0.2, 0.1])
    for name, best in (("newest", False), ("best", True)):
        out = consolidate.run(tmp_path / "run", tmp_path / f"{name}.safetensors", best=best)
        taken = read_weights(str(out)).state
        _, checkpoint = best_of(tmp_path / "run")
        alike = [
            torch.equal(
                checkpoint["state_dict"][name.replace("image_encoder.trunk.", "model.encoder.")],
                own,
            )
            for name, own in taken.items()
        ]
        assert all(alike) if best else not all(alike)
    with pytest.raises(UserError, match=r"--best: there is no .*checkpoints/best"):
        consolidate.run(tmp_path / "run/checkpoints", tmp_path / "none.safetensors", best=True)
