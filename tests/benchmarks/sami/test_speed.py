"""That the SAMI benchmark counts and compares rightly; its figures are not judged here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Options, json_line
from benchmarks.sami import gpu, mae_reference, plan
from benchmarks.sami import speed as sami
from benchmarks.sami.flop import mae_flop, step_flop, student_flop, teacher_flop
from benchmarks.sami.timed_step import CHANNELS, STUDENTS, MaeStep, StudentStep
from efficientsam_pl.models.config import NAMED, EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.vit import SamImageEncoder

STUDENT = EncoderConfig(width=24, depth=2, heads=2, image_size=64, position_grid=4)
TINY = SamiConfig(student=STUDENT, decoder_depth=2, decoder_width=32, decoder_heads=4)
TEACHER = TeacherConfig(
    encoder=EncoderConfig(
        kind="sam_vit", width=32, depth=2, heads=2, position_grid=64, global_blocks=(1,)
    ),
    precision="fp32",
    image_size=64,
)
MAE_LIKE = """
from util.pos_embed import get_2d_sincos_pos_embed
from torch import nn

class MaskedAutoencoderViT(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, decoder_embed_dim,
                 decoder_depth, decoder_num_heads, norm_layer, norm_pix_loss):
        super().__init__()
        self.norm = norm_layer(get_2d_sincos_pos_embed(embed_dim))
        self.embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.told = dict(width=embed_dim, qk_scale=None, depth=depth)

    def forward(self, imgs):
        return self.norm(self.embed(imgs).flatten(2).transpose(1, 2)).square().mean(), None
"""


@pytest.fixture
def mae_like(tmp_path: Path) -> Path:
    """A checkout in MAE's layout: the same imports and calls, another network."""
    (tmp_path / "models_mae.py").write_text(MAE_LIKE)
    (tmp_path / "util").mkdir()
    (tmp_path / "util/pos_embed.py").write_text(
        "import numpy as np\n\ndef get_2d_sincos_pos_embed(d):\n"
        "    return len(np.arange(d, dtype=np.float))\n"
    )
    return tmp_path


def counted(module: nn.Module, *inputs: Tensor) -> int:
    """Count with torch's counter; on the meta device, where it knows fused attention too."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("decoder", ["cross_attention", "self_attention"])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("size", ["tiny", "S"])
def test_students_operations_by_hand_are_those_counted(
    size: str, class_token: bool, decoder: str
) -> None:
    config = {"tiny": TINY, "S": STUDENTS["S"]}[size]
    config = replace(
        config, student=replace(config.student, class_token=class_token), decoder=decoder
    )
    side = config.student.image_size
    with torch.device("meta"):
        model = Sami(config, 8)
        first, both = (
            counted(model, torch.empty(b, 3, side, side), torch.empty(b, dtype=torch.int64))
            for b in (1, 2)
        )
    # the photos of a batch share the first block's queries, keys and values of masked tokens
    masked = config.student.grid() ** 2 - config.visible_tokens()
    shared = 0 if decoder == "self_attention" else 2 * 3 * masked * config.decoder_width**2
    assert student_flop(config, 8) - shared == both - first


def test_the_backward_pass_costs_two_forwards_but_for_the_pixels() -> None:
    """No gradient is required of the pixels, which spares one product of the patches' size."""
    config = replace(TINY, student=replace(STUDENT, attention="explicit"))
    torch.manual_seed(0)
    model = Sami(replace(config, decoder="self_attention"), 8)
    for block in model.decoder.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64))[0].sum().backward()
    spared = 2 * 4 * 768 * 24
    expected = step_flop(replace(config, decoder="self_attention"), 8) - spared
    assert counter.get_total_flops() == expected


def test_saving_over_maes_model_worked_out_for_s() -> None:
    """49 visible and 147 masked of 196 tokens; D = 512 in the decoder, products in millions.

    Ours: patches 49*768*384 = 14.5; 12 blocks of 49*12*384^2 + 2*49^2*384 = 88.5; embedding 9.6;
    8 blocks of (147*10 + 196*2)*512^2 + 2*147*196*512 = 517.6; head 25.7. MAE's with its class
    token: 57.8; 12 of 90.4; 9.8; 8 of 659.4; 77.5.
    """
    ours = 14.5 + 12 * 88.5 + 9.6 + 8 * 517.6 + 25.7
    theirs = 57.8 + 12 * 90.4 + 9.8 + 8 * 659.4 + 77.5
    assert student_flop(STUDENTS["S"], 256) == pytest.approx(2e6 * ours, rel=1e-3)
    assert mae_flop(STUDENTS["S"]) == pytest.approx(2e6 * theirs, rel=1e-3)


@pytest.mark.parametrize(("size", "gmacs"), [(224, 127), (1024, 2973)])
def test_teachers_operations_by_hand_are_those_counted_and_known(size: int, gmacs: float) -> None:
    encoder = NAMED["sam_vit_h"].encoder
    with torch.device("meta"):
        found = counted(SamImageEncoder(encoder), torch.empty(1, 3, size, size))
    assert teacher_flop(encoder, size) == found
    assert found / 2e9 == pytest.approx(gmacs, rel=0.005)


def test_every_row_of_a_tiny_student_is_in_the_json(mae_like: Path) -> None:
    rows = sami.student_rows(TINY, mae_like, batch=2, rounds=2, seconds=0)
    rows.append(sami.online_row(TINY, TEACHER, batch=2, rounds=1, goal=6))
    rows.append(sami.int8_row(TINY))
    found = {row["id"]: row for row in json.loads(json_line("sami", rows))["rows"]}
    assert set(found) == {
        "sami.student_step",
        "sami.student_step_processor_time",
        "sami.student_step_floor",
        "sami.stored_vs_online_64",
        "sami.int8_bytes",
    }
    assert (found["sami.student_step"]["goal"], found["sami.student_step"]["better"]) == (
        0.85,
        "lower",
    )
    online = found["sami.stored_vs_online_64"]
    assert online["better"] == "higher"
    assert online["ratio"] == online["value"] / online["reference"]
    assert all(row["value"] > 0 for row in found.values())


def test_int8_halves_a_view_but_for_its_scales() -> None:
    """196 * 256 bytes and 256 scales of 4, beside 196 * 256 * 2; headers below 300 bytes."""
    row = sami.int8_row(STUDENTS["S"])
    assert 51_200 < row.value < 51_500
    assert row.reference is not None
    assert 100_352 < row.reference < 100_652
    assert row.met()


def test_a_step_learns_the_same_from_stored_and_from_online_features() -> None:
    stored, online = StudentStep(TINY, batch=2), StudentStep(TINY, batch=2)
    before = stored.model.decoder.head.weight.clone()
    seen = []

    def teacher(image: Tensor) -> Tensor:
        seen.append(image)
        return online.stored

    for _ in range(2):
        stored.with_stored()
        online.with_online(teacher)
    assert [image.shape for image in seen] == [(2, 3, 64, 64)] * 2
    assert stored.stored.shape == (2, 16, CHANNELS)
    assert not torch.equal(stored.model.decoder.head.weight, before)
    for ours, theirs in zip(stored.model.parameters(), online.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_maes_code_is_loaded_from_its_folder_and_leaves_no_modules(mae_like: Path) -> None:
    before = dict(sys.modules)
    model = mae_reference.mae_model(mae_like, TINY)
    assert dict(sys.modules) == before
    assert model.told == {"width": 24, "depth": 2}
    weight = model.embed.weight.clone()
    MaeStep(model, 64, batch=2)()
    assert not torch.equal(model.embed.weight, weight)


def test_a_module_of_the_same_name_is_put_back(
    mae_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("util")
    monkeypatch.setitem(sys.modules, "util", other)
    mae_reference.mae_model(mae_like, TINY)
    assert sys.modules["util"] is other


def test_without_maes_code_its_row_is_absent_and_stderr_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MAE_REPO", raising=False)
    monkeypatch.setattr(sami, "STUDENTS", {"S": TINY})
    assert sami.main(["--json", "--quick"]) == 0
    told = capsys.readouterr()
    assert "MAE_REPO" in told.err
    rows = json.loads(told.out.splitlines()[-1])["rows"]
    assert [row["id"] for row in rows] == ["sami.student_step_floor", "sami.int8_bytes"]


def test_a_folder_without_maes_code_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAE_REPO", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"models_mae\.py"):
        mae_reference.mae_folder()


@pytest.mark.parametrize(
    ("memory", "batches"),
    [
        (2**30, [64, 128, 256, 512]),
        (5 * 2**30, [64, 256, 512]),  # room for five times the first: it leaps to four times
        (9 * 2**30, [64, 512, 256, 512]),  # what does not fit after all is halved
    ],
)
def test_the_batch_doubles_until_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, memory: int, batches: list[int]
) -> None:
    tried = []

    def fitted(build: object, batch: int) -> gpu.Fitted:
        tried.append(batch)
        if batch > 300:
            raise torch.OutOfMemoryError
        return gpu.Fitted(batch, seconds=0.5, memory=2**30)

    monkeypatch.setattr(gpu, "_fitted", fitted)
    monkeypatch.setattr(gpu, "_memory", lambda: memory)
    assert gpu.largest_that_fits(lambda batch: lambda: None).batch == 256
    assert tried == batches


def test_a_gpu_too_small_for_any_batch_is_no_endless_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitted(build: object, batch: int) -> gpu.Fitted:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "_fitted", fitted)
    with pytest.raises(torch.OutOfMemoryError):
        gpu.largest_that_fits(lambda batch: lambda: None)


def test_rows_of_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 photos of 10 GFLOP in 50 ms are 102.4 TFLOP/s, 0.4096 of 250."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    found = gpu.Fitted(batch=512, seconds=0.05, memory=3 * 2**30)
    share, images, memory = gpu.gpu_rows(
        "sami.gpu_s", "S", found, 10**10, (250e12, "a product"), 0.40
    )
    assert share.ratio() == pytest.approx(0.4096)
    assert share.met()
    assert images.value == pytest.approx(10_240)
    assert memory.value == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_learns_in_bf16() -> None:
    """In a process of its own, where shapes are not checked: what checks them does not compile."""
    code = """
import torch
from benchmarks.sami.timed_step import StudentStep
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
student = EncoderConfig(width=24, depth=1, heads=3, image_size=64, position_grid=4)
config = SamiConfig(student=student, decoder_depth=1, decoder_width=32, decoder_heads=2)
step = StudentStep(config, 2, "cuda")
weight = step.model.decoder.head.weight.clone()
step.with_stored()
assert not torch.equal(step.model.decoder.head.weight, weight)
assert torch.isfinite(step.model.decoder.head.weight).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


RUN = plan.Run(images=1000, epochs=9, jpeg_bytes=100_000, views=4)
MACHINE = plan.Machine(student=10e12, teacher=20e12)


def way(**changed: int) -> plan.Way:
    parts = {"online_flop": 0, "embedding_flop": 0, "stored_bytes": 0, "read_bytes": 0}
    return plan.Way(name="w", **(parts | changed))


def test_cost_of_an_online_teacher_by_hand() -> None:
    """2 TFLOP at 10 a second and 4 at 20: 0.4 s a sample, 9000 samples, so one hour."""
    found = plan.cost(way(online_flop=4 * 10**12), 2 * 10**12, RUN, MACHINE)
    assert found.embedding_hours == 0
    assert found.training_hours == pytest.approx(1)
    assert found.image_rate == pytest.approx(2.5)
    assert found.read_rate == pytest.approx(250_000)
    assert found.storage == 100_000_000


def test_cost_of_stored_features_by_hand() -> None:
    """7.2 TFLOP at 20 a second, once for each of 1000 photos: 360 s. 0.2 s a sample."""
    stored = way(embedding_flop=72 * 10**11, stored_bytes=400_000, read_bytes=100_000)
    found = plan.cost(stored, 2 * 10**12, RUN, MACHINE)
    assert found.embedding_hours == pytest.approx(0.1)
    assert found.training_hours == pytest.approx(0.5)
    assert found.read_rate == pytest.approx(1_000_000)
    assert found.storage == 500_000_000


def test_bytes_of_a_map_are_those_of_the_recipe() -> None:
    """14 * 14 * 256 in 16 bits is 98 KiB; in 8 bits half of it and 256 scales of 4 bytes."""
    assert plan.map_bytes(14 * 14, "float16") == 98 * 1024
    assert plan.map_bytes(14 * 14, "int8") == 49 * 1024 + 1024
    assert plan.map_bytes(64 * 64, "float16") == 2 * 2**20


def test_views_are_stored_all_and_read_one_at_a_time() -> None:
    ways = {way.name: way for way in plan.ways(views=4)}
    assert len(ways) == 8
    stored = ways["stored, 4 views at 224, float16"]
    assert stored.stored_bytes == 4 * stored.read_bytes == 4 * 98 * 1024
    assert stored.embedding_flop == 4 * ways["online, 224"].online_flop


def test_plan_is_a_table_of_every_way_for_both_students(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(["--views", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 8)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    # 512.5 M samples of 31.5 GFLOP at 0.34 * 790 TFLOP/s are 60 100 s, 16.7 hours
    stored = next(line for line in rows if line.startswith("| stored, 2 views at 224, int8"))
    assert "| 17 |" in stored


def test_options_are_the_common_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []
    monkeypatch.delenv("MAE_REPO", raising=False)
    monkeypatch.setattr(sami, "student_rows", lambda *_: [])
    monkeypatch.setattr(sami, "report", lambda name, rows, options: seen.append(options))
    sami.main(["--json", "--quick"])
    assert seen == [Options(json=True, quick=True)]
