"""Records of classified images, and accuracies against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from efficientsam_pl.evaluation.results.class_record import ClassRecord, accuracies, class_record
from efficientsam_pl.evaluation.results.record import RecordError


def test_accuracies_are_torchmetrics() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 12)))
    label = torch.from_numpy(np.random.default_rng(1).integers(0, 12, 200))
    top = logits.topk(5).indices.tolist()
    records = [ClassRecord(n, int(label[n]), tuple(top[n])) for n in range(200)]
    records.append(ClassRecord(200, damage=("bad photo", "x", "")))
    for k in (1, 5):
        expected = multiclass_accuracy(logits, label, num_classes=12, top_k=k, average="micro")
        assert accuracies(records)[f"top{k}"] == pytest.approx(float(expected), abs=1e-7)


def test_nothing_has_no_accuracy() -> None:
    assert accuracies([ClassRecord(0, damage=("bad photo", "x", ""))]) == {
        "top1": None,
        "top5": None,
    }


@pytest.mark.parametrize(
    "record",
    [
        ClassRecord(3, 1, (1, 0, 2), sha256="ab"),
        ClassRecord(4, damage=("unknown class", "s.tar b0", "class 3")),
    ],
)
def test_a_line_gives_the_record_back(record: ClassRecord) -> None:
    assert class_record(record.line()) == record


@pytest.mark.parametrize("line", ["", '{"photo":1', "[]\n", '{"photo":1}\n', "null\n"])
def test_a_torn_or_foreign_line_is_no_record(line: str) -> None:
    with pytest.raises(RecordError):
        class_record(line)
