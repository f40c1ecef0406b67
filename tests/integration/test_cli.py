"""The console command as a user meets it: every case is a process of its own."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.rle import encode

COMMANDS = {
    "quickstart",
    "pack",
    "check-shards",
    "embed-teacher",
    "pretrain",
    "finetune",
    "evaluate",
    "compare",
    "consolidate",
    "predict",
    "everything",
    "salient",
    "figure",
    "configs",
    "info",
}
SCRIPT = Path(sys.executable).with_name("efficientsam")
COMMAND = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "efficientsam_pl"]
HEIGHT, WIDTH = 48, 64
MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
MODEL_WITH_MASK_PROMPTS = (
    MODEL + "prompts: {mask_prompts: true, negative_clicks: true, max_points: null}\n"
)
LOW_RES = 16  # a quarter of 64


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def efficientsam(*arguments: object, folder: Path | None = None) -> Outcome:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def one_line(outcome: Outcome) -> str:
    """What a wrong command says on stderr."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    [line] = outcome.err.splitlines()
    assert line.startswith("efficientsam: ")
    return line


def processor_seconds() -> float:
    """What the processes awaited so far have used: other programs' work does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def mistake(*arguments: object, folder: Path | None = None) -> str:
    return one_line(efficientsam(*arguments, folder=folder))


def done(*arguments: object, folder: Path | None = None) -> str:
    outcome = efficientsam(*arguments, folder=folder)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome.out


class InProcess:
    """The same command without a process of its own, for tables of cases that import torch."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *arguments: object, folder: Path | None = None) -> Outcome:
        with self._patch.context() as patch:
            if folder is not None:
                patch.chdir(folder)
            self._capture.readouterr()
            code = cli.main(list(map(str, arguments)))
        said = self._capture.readouterr()
        return Outcome(code, said.out, said.err)

    def mistake(self, *arguments: object, folder: Path | None = None) -> str:
        return one_line(self(*arguments, folder=folder))

    def done(self, *arguments: object, folder: Path | None = None) -> str:
        outcome = self(*arguments, folder=folder)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(capfd, monkeypatch)


@dataclass(frozen=True)
class Set:
    """A photo, models and their weights."""

    folder: Path

    @property
    def photo(self) -> Path:
        return self.folder / "photo.png"

    @property
    def model(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def model_with_mask_prompts(self) -> Path:
        return self.folder / "tiny_masks.yaml"

    @property
    def weights(self) -> Path:
        return self.folder / "tiny.safetensors"

    def predict(self, *extra: object, **changes: object) -> list[object]:
        """Arguments of a prediction into OUT, with one option or another changed."""
        options: dict[str, object] = {"image": self.photo, "weights": self.weights, **changes}
        named = [part for name, value in options.items() for part in (f"--{name}", value)]
        return ["predict", *named, *extra]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Set:
    here = Set(tmp_path_factory.mktemp("set"))
    here.model.write_text(MODEL)
    here.model_with_mask_prompts.write_text(MODEL_WITH_MASK_PROMPTS)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(here.photo)
    for model in (here.model, here.model_with_mask_prompts):
        config = configs.load(SegmenterConfig, [str(model)], [])
        torch.manual_seed(0)
        state = load_segmenter(config, None).state_dict()
        out, told = model.with_suffix(".safetensors"), configs.as_dict(config)
        write_safetensors(out, state, state.values(), told, {"stage": "test"})
    (here.folder / "text.txt").write_text("no photo and no weights")
    (here.folder / "garbage.safetensors").write_bytes(b"\x07" * 500)
    (here.folder / "garbage.pt").write_bytes(b"\x07" * 500)
    (here.folder / "list.pt").write_bytes(b"")
    torch.save([1, 2, 3], here.folder / "list.pt")
    torch.save({"model": {"some.weight": torch.zeros(3)}}, here.folder / "other.pt")
    np.save(here.folder / "small.npy", np.zeros((4, 4), dtype=np.float32))
    np.save(here.folder / "cube.npy", np.zeros((1, LOW_RES, LOW_RES), dtype=np.float32))
    np.save(here.folder / "text.npy", np.array([["a", "b"]]))
    np.savez(here.folder / "several.npz", a=np.zeros(3))
    logits = np.full((LOW_RES, LOW_RES), -5, dtype=np.float32)
    logits[4:12, 4:12] = 5
    np.save(here.folder / "logits.npy", logits)
    return here


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos with two masks each, and a shard that is none."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(1)
    photos = []
    for i in range(3):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[5 : 20 + i, 8:40] = True
        masks = tuple(annotation_of(encode(m)) for m in (mask, ~mask))
        image = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        photos.append(MaskedImage(f"p{i}", image, masks))
    pack_images(photos, folder, "set")
    (folder / "set-999999.tar").write_bytes(b"broken off")
    return folder


def test_help_lists_exactly_the_commands_that_work() -> None:
    told = done("--help")
    listed = told[told.index("COMMAND\n") :].splitlines()[1:]
    assert {line.split()[0] for line in listed if re.match(" {4}[a-z]", line)} == COMMANDS


@pytest.mark.parametrize("command", [*sorted(COMMANDS), "pack coco", "pack sa1b", "pack imagenet"])
def test_every_command_helps(command: str) -> None:
    told = done(*command.split(), "--help")
    assert f"usage: efficientsam {command}" in told.replace("__main__.py", "efficientsam")


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate"])
def test_printed_config_is_the_whole_config(name: str, tmp_path: Path) -> None:
    roots = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate": EvaluateConfig}
    override = "seed=7" if name == "evaluate" else "run.seed=7"
    told = done(name, "--print-config", override, folder=tmp_path)
    (tmp_path / "printed.yaml").write_text(told)
    loaded = configs.load(roots[name], [str(tmp_path / "printed.yaml")], [])
    assert loaded == configs.load(roots[name], [], [override])
    assert list(tmp_path.iterdir()) == [tmp_path / "printed.yaml"]  # nothing was begun


def test_printed_config_of_the_quickstart_holds_both_stages(tmp_path: Path) -> None:
    told = done("quickstart", "--print-config", "photo_side=99", folder=tmp_path)
    assert "photo_side: 99" in told
    assert "pretrain:" in told
    assert "finetune:" in told


def test_options_may_come_between_files_and_overrides() -> None:
    told = done("finetune", "-c", "finetune/s", "-c", "debug/cpu", "run.seed=3", "--print-config")
    assert "seed: 3" in told
    assert "name: efficient_sam_s" in told
    assert "max_steps: 4" in told


def test_config_error_is_told_within_a_second(tmp_path: Path) -> None:
    began = processor_seconds()
    mistake("finetune", "-c", "finetune/ti", "optim.warmup=3", folder=tmp_path)
    assert processor_seconds() - began < 1.0


PREDICT = ["predict", "--weights", "gone.pt", "--image", "gone.png", "--out", "o"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.seed=3", "-c", "finetune/s", "data.workers=5"],
        ["-c", "finetune/s", "run.seed=3", "data.workers=5"],
        ["run.seed=3", "data.workers=5", "-c", "finetune/s"],
        ["run.seed=3", "-c", "finetune/s", "--print-config", "data.workers=5"],
    ],
    ids=" ".join,
)
def test_overrides_may_stand_anywhere(arguments: list[str], here: InProcess) -> None:
    told = here.done("finetune", *arguments, "--print-config")
    assert all(line in told for line in ("seed: 3", "workers: 5", "name: efficient_sam_s"))


WRONG_CONFIGS: list[tuple[list[str], list[str]]] = [
    (["pretrain", "optim.warmup=3"], ["optim.warmup", "optim.warmup_steps"]),
    (["pretrain", "trainer.max_steps=soon"], ["trainer.max_steps", "soon"]),
    (
        ["pretrain", "optim.warmup_steps=9", "trainer.max_steps=9"],
        ["optim.warmup_steps=9", "trainer.max_steps=9"],
    ),
    (["finetune", "-c", "finetune/xxl"], ["finetune/xxl", "ti_interactive"]),
    (["finetune", "run.dir=null"], ["run.dir"]),
    (["finetune", "run.seed"], ["run.seed"]),
    (["finetune", "run.dir=[1"], ["run.dir=[1"]),
    (["finetune", "--fast"], ["--fast"]),
    (["finetune", "run.seed=1", "--fast", "run.dir=x"], ["--fast"]),
    (["consolidate", "a", "b", "c=d"], ["c=d"]),
    (["evaluate", "accelerator=tpu"], ["accelerator", "tpu"]),
    (["finetune", "run.seed=-1"], ["run.seed=-1"]),
    (["evaluate", "modle.name=x"], ["modle", "model"]),
    (["quickstart", "--seed", "many"], ["--seed", "many"]),
    (["quickstart", "--seed", "-1"], ["--seed"]),
    (["quickstart", "--coco", "gone.json", "gone"], ["--coco", "gone.json"]),
    (["quickstart", "--images", "gone"], ["--images", "gone"]),
    (["quickstart", "--teacher", "gone.pth"], ["--teacher", "gone.pth"]),
    (["quickstart", "--images", "a", "--coco", "b", "c"], ["--coco", "--images"]),
    (["fly"], ["fly"]),
    ([], ["COMMAND"]),
    (["pack"], ["SOURCE"]),
    (["pack", "coco"], ["--annotations"]),
    (["pack", "coco", "--annotations", "a", "--images", "b", "--out", "c", "--long-side", "0"],
     ["--long-side", "0"]),
    (["predict"], ["--weights"]),
    (PREDICT, ["--point", "--box"]),
    ([*PREDICT, "--point", "1"], ["--point", "'1'"]),
    ([*PREDICT, "--point", "1,x"], ["1,x"]),
    ([*PREDICT, "--point", "1,2,5"], ["1,2,5"]),
    ([*PREDICT, "--point", "1,,2"], ["1,,2"]),
    ([*PREDICT, "--box", "1,2,3"], ["1,2,3"]),
    ([*PREDICT, "--point", "1,2"], ["--weights", "gone.pt"]),
    (["consolidate", "run"], ["OUT"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), WRONG_CONFIGS, ids=lambda x: " ".join(x)[:40])
def test_mistake_is_told_in_one_line(
    arguments: list[str], named: list[str], tmp_path: Path, here: InProcess
) -> None:
    line = here.mistake(*arguments, folder=tmp_path)
    assert all(part in line for part in named), line
    assert list(tmp_path.iterdir()) == []


WRONG_PREDICTIONS: list[tuple[dict[str, str], list[str], list[str]]] = [
    ({"image": "gone.png"}, ["--point", "1,2"], ["--image", "gone.png"]),
    ({"image": "text.txt"}, ["--point", "1,2"], ["--image", "text.txt"]),
    ({"weights": "gone.pt"}, ["--point", "1,2"], ["--weights", "gone.pt"]),
    ({"weights": "garbage.safetensors"}, ["--point", "1,2"], ["garbage.safetensors"]),
    ({"weights": "garbage.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["garbage.pt"]),
    ({"weights": "text.txt", "model": "tiny.yaml"}, ["--point", "1,2"], ["text.txt"]),
    ({"weights": "list.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["list.pt"]),
    ({"weights": "other.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["some.weight"]),
    ({"weights": "other.pt"}, ["--point", "1,2"], ["other.pt", "--model"]),
    ({"model": "tiny_masks.yaml"}, ["--point", "1,2"], ["tiny.safetensors", "negative"]),
    ({"model": "efficient_sam_xxl"}, ["--point", "1,2"], ["efficient_sam_xxl", "sam_vit_b"]),
    ({}, ["--point", "64.5,2"], ["(64.5, 2)", "64 x 48"]),
    ({}, ["--point=-1,2"], ["(-1, 2)"]),
    ({}, ["--point", "nan,2"], ["nan"]),
    ({}, ["--box", "1,2,3,99"], ["(3, 99)", "64 x 48"]),
    ({}, ["--box", "30,2,10,9"], ["x0 <= x1"]),
    ({}, ["--point", "1,2,0"], ["negative"]),
    ({}, [x for i in range(7) for x in ("--point", f"{i},2")], ["7 points", "6"]),
    ({}, [x for i in range(5) for x in ("--point", f"{i},2")] + ["--box", "1,1,9,9"], ["7 points"]),
    ({}, ["--point", "1,2", "--box", "1,1,2,2", "--box", "3,3,4,4"], ["--point", "--box"]),
    ({}, ["--mask-input", "logits.npy"], ["mask prompts"]),
    ({"mask-input": "gone.npy"}, [], ["--mask-input", "gone.npy"]),
    ({"mask-input": "text.txt"}, [], ["--mask-input", "text.txt"]),
    ({"mask-input": "cube.npy"}, [], ["--mask-input", "cube.npy"]),
    ({"mask-input": "text.npy"}, [], ["--mask-input", "text.npy"]),
    ({"mask-input": "several.npz"}, [], ["--mask-input", "several.npz"]),
    ({"mask-input": "small.npy"}, [], ["[1, 16, 16]", "[1, 4, 4]"]),
    ({"out": "text.txt"}, ["--point", "1,2"], ["text.txt"]),
    ({"npz": "."}, ["--point", "1,2"], ["Is a directory: ."]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "prompts", "named"), WRONG_PREDICTIONS, ids=lambda x: str(x)[:40]
)
def test_prediction_that_cannot_be_made_names_the_reason(
    changes: dict[str, str],
    prompts: list[str],
    named: list[str],
    tiny: Set,
    tmp_path: Path,
    here: InProcess,
) -> None:
    options = {"out": str(tmp_path / "out"), **changes}
    line = here.mistake(*tiny.predict(*prompts, **options), folder=tiny.folder)
    assert all(part in line for part in named), line


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def mask_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("mask_*.png"))


def test_points_are_one_prompt_with_three_candidates(
    tiny: Set, tmp_path: Path, here: InProcess
) -> None:
    out, npz = tmp_path / "out", tmp_path / "deep/er/a.npz"
    told = here.done(*tiny.predict("--point", "20,20", "--point", "30,25,1", out=out, npz=npz))
    assert "mask 0" in told
    found = arrays(npz)
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {
        "masks": ((1, 3, HEIGHT, WIDTH), np.dtype(bool)),
        "low_res_logits": ((1, 3, LOW_RES, LOW_RES), np.dtype(np.float32)),
        "iou": ((1, 3), np.dtype(np.float32)),
    }
    assert mask_files(out) == ["mask_0.png"]
    with Image.open(out / "overlay.png") as overlay, Image.open(out / "mask_0.png") as mask:
        assert overlay.size == mask.size == (WIDTH, HEIGHT)
        assert (overlay.format, mask.format) == ("PNG", "PNG")
        best = found["masks"][0, found["iou"][0].argmax()]
        np.testing.assert_array_equal(np.array(mask.convert("L")) > 0, best)


def test_each_box_is_its_own_prompt(tiny: Set, tmp_path: Path, here: InProcess) -> None:
    boxes = [("--box", f"{i},{i},{i + 20},{i + 15}") for i in (2, 10, 25)]
    both, alone = tmp_path / "all.npz", tmp_path / "second.npz"
    here.done(*tiny.predict(*[x for b in boxes for x in b], out=tmp_path / "all", npz=both))
    here.done(*tiny.predict(*boxes[1], out=tmp_path / "second", npz=alone))
    assert mask_files(tmp_path / "all") == ["mask_0.png", "mask_1.png", "mask_2.png"]
    assert arrays(both)["masks"].shape == (3, 3, HEIGHT, WIDTH)
    np.testing.assert_allclose(
        arrays(both)["low_res_logits"][1], arrays(alone)["low_res_logits"][0], atol=1e-4
    )


def test_points_with_a_box_are_one_prompt(tiny: Set, tmp_path: Path, here: InProcess) -> None:
    npz = tmp_path / "a.npz"
    prompt = ("--box", "2,2,40,40", "--point", "20,20", "--point", "9,9")
    here.done(*tiny.predict(*prompt, out=tmp_path, npz=npz))
    assert arrays(npz)["masks"].shape == (1, 3, HEIGHT, WIDTH)


def test_single_mask_is_token_zero_alone(tiny: Set, tmp_path: Path, here: InProcess) -> None:
    single, three = tmp_path / "1.npz", tmp_path / "3.npz"
    here.done(*tiny.predict("--box", "2,2,40,40", "--single-mask", out=tmp_path, npz=single))
    here.done(*tiny.predict("--box", "2,2,40,40", out=tmp_path, npz=three))
    assert arrays(single)["masks"].shape == (1, 1, HEIGHT, WIDTH)
    for candidate in arrays(three)["low_res_logits"][0]:
        assert not np.allclose(arrays(single)["low_res_logits"][0, 0], candidate)


def test_model_may_be_named_by_file_or_read_from_the_weights(
    tiny: Set, tmp_path: Path, here: InProcess
) -> None:
    told, named = tmp_path / "told.npz", tmp_path / "named.npz"
    here.done(*tiny.predict("--point", "9,9", out=tmp_path, npz=told))
    here.done(*tiny.predict("--point", "9,9", out=tmp_path, npz=named, model=tiny.model))
    one, other = arrays(told), arrays(named)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_earlier_mask_is_a_prompt_for_a_model_that_takes_one(
    tiny: Set, tmp_path: Path, here: InProcess
) -> None:
    model = {
        "model": tiny.model_with_mask_prompts,
        "weights": tiny.model_with_mask_prompts.with_suffix(".safetensors"),
        "mask-input": tiny.folder / "logits.npy",
    }
    plain = {k: v for k, v in model.items() if k != "mask-input"}
    files = [tmp_path / f"{name}.npz" for name in ("without", "with", "alone")]
    points = ("--point", "20,20", "--point", "5,5,0")
    here.done(*tiny.predict(*points, out=tmp_path / "0", npz=files[0], **plain))
    here.done(*tiny.predict(*points, out=tmp_path / "1", npz=files[1], **model))
    here.done(*tiny.predict(out=tmp_path / "2", npz=files[2], **model))
    without, together, alone = (arrays(file)["low_res_logits"] for file in files)
    assert without.shape == together.shape == alone.shape == (1, 3, LOW_RES, LOW_RES)
    assert not np.allclose(without, together)
    assert not np.allclose(together, alone)
    assert mask_files(tmp_path / "2") == ["mask_0.png"]
    assert (tmp_path / "2/overlay.png").is_file()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_packed_coco_set_is_read_back_by_webdataset(
    shared: Path, tmp_path: Path, here: InProcess
) -> None:
    folder = shared / "data/coco/tiny_coco"
    annotations = folder / "annotations/instances_val2017.json"
    source = json.loads(annotations.read_text())
    present = {
        i["id"]: i["file_name"]
        for i in source["images"]
        if (folder / "images/val2017" / i["file_name"]).is_file()
    }
    out = tmp_path / "shards"
    images = folder / "images/val2017"
    told = here.done("pack", "coco", "--annotations", annotations, "--images", images, "--out", out)
    assert f"{len(present)} photos" in told
    paths = sorted(map(str, out.glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert {s["__key__"] for s in samples} == {Path(name).stem for name in present.values()}
    by_key = {Path(i["file_name"]).stem: i for i in source["images"]}
    for sample in samples:
        image = by_key[sample["__key__"]]
        expected = [a for a in source["annotations"] if a["image_id"] == image["id"]]
        record = sample["json"]
        assert sample["jpg"].size == (image["width"], image["height"])
        assert (record["image"]["width"], record["image"]["height"]) == sample["jpg"].size
        assert len(record["annotations"]) == len(expected)
        crowds = [bool(a.get("iscrowd", 0)) for a in record["annotations"]]
        assert crowds == [bool(a["iscrowd"]) for a in expected]
        for ours, theirs in zip(record["annotations"], expected, strict=True):
            assert ours["area"] == pytest.approx(theirs["area"], rel=0.25, abs=40)


def test_packed_images_are_shrunk_with_their_masks(
    shared: Path, tmp_path: Path, here: InProcess
) -> None:
    folder = shared / "data/coco/tiny_coco"
    here.done(
        "pack", "coco", "--long-side", 100, "--out", tmp_path / "small",
        "--annotations", folder / "annotations/instances_val2017.json",
        "--images", folder / "images/val2017",
    )  # fmt: skip
    photos = list(annotated_images(open_shards(str(tmp_path / "small/*.tar"))))
    assert photos
    for photo in photos:
        assert isinstance(photo, AnnotatedImage)
        assert max(photo.image.shape) == 100
        assert all(tuple(rle["size"]) == photo.image.shape[:2] for rle in photo.truth)


@pytest.mark.parametrize(
    ("annotations", "images", "out", "named"),
    [
        ("gone.json", ".", "out", "gone.json"),
        ("text.json", ".", "out", "text.json"),
        ("set.json", "gone", "out", "gone"),
        ("set.json", ".", "out", "a.jpg"),
        ("set.json", ".", "set.json", "set.json"),
    ],
)
def test_set_that_cannot_be_packed_names_the_reason(
    annotations: str, images: str, out: str, named: str, tmp_path: Path, here: InProcess
) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    listed = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(listed))
    options = ("--annotations", annotations, "--images", images, "--out", out)
    assert named in here.mistake("pack", "coco", *options, folder=tmp_path)


@pytest.mark.parametrize("name", ["gone.ckpt", "text.txt", "garbage.pt", "other.pt", "."])
def test_consolidating_what_is_no_checkpoint_names_it(
    name: str, tiny: Set, tmp_path: Path, here: InProcess
) -> None:
    line = here.mistake("consolidate", name, tmp_path / "out.safetensors", folder=tiny.folder)
    assert name in line
    assert "checkpoint" in line
    assert list(tmp_path.iterdir()) == []


def test_evaluation_counts_and_scores_every_mask(
    tiny: Set, shards: Path, tmp_path: Path, here: InProcess
) -> None:
    out = tmp_path / "deep/scores.json"
    told = here.done(
        "evaluate",
        f"model.name={tiny.model}",
        f"model.weights={tiny.weights}",
        f"shards={shards}/*.tar",
        f"out={out}",
        "accelerator=cpu",
    )
    scores = json.loads(out.read_text())
    assert (scores["counts"]["photos"], scores["counts"]["instances"]) == (3, 6)
    [damage] = scores["damaged"]
    assert damage["photo"] == "set-999999.tar"
    assert "3 photos, 6 instances" in told
    assert "1 damaged" in told
    for name in ("box", "click_random_1", "click_random_3"):
        assert 0 <= scores["numbers"][name]["miou"]["all"] <= 1
    # the rectangles fill their boxes; what is left of the photo fills its box in part
    rest = [1 - (15 + i) * 32 / (HEIGHT * WIDTH) for i in range(3)]
    filled = scores["numbers"]["box"]["filled_box_miou"]["all"]
    assert filled == pytest.approx((3 + sum(rest)) / 6, abs=1e-6)
    assert {"torch", "efficientsam_pl"} <= set(scores["versions"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["shards=/nowhere/*.tar"], "/nowhere/*.tar"),
        ([], "shards="),
        (["model.weights=null", "shards=a"], "model.weights="),
        (["model.weights=gone.pt", "shards={shards}/*.tar"], "gone.pt"),
        (["model.name=sam_vit_z", "shards={shards}/*.tar"], "sam_vit_z"),
    ],
)
def test_evaluation_that_cannot_be_made_names_the_reason(
    overrides: list[str], named: str, tiny: Set, shards: Path, tmp_path: Path, here: InProcess
) -> None:
    given = [f"model.name={tiny.model}", f"model.weights={tiny.weights}"]
    rest = [override.format(shards=shards) for override in overrides]
    assert named in here.mistake("evaluate", *given, *rest, folder=tmp_path)


@pytest.mark.parametrize(
    ("command", "overrides", "named"),
    [
        ("pretrain", [], "data.train="),
        ("pretrain", ["data.train=/nowhere/*.tar"], "/nowhere/*.tar"),
        ("pretrain", ["data.train={shards}/*.tar", "teacher.weights=gone.pth"], "gone.pth"),
        pytest.param(
            "pretrain",
            ["-c", "cluster/1x8", "data.train={shards}/*.tar"],
            "trainer.devices=8",
            marks=pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="eight GPUs are here"),
        ),
        ("finetune", [], "data.train="),
        ("finetune", ["data.train=/nowhere/*.tar", "model.name={model}"], "/nowhere/*.tar"),
        ("finetune", ["data.train={shards}/*.tar", "model.weights=gone.pt"], "gone.pt"),
        ("finetune", ["data.train={shards}/*.tar", "model.name=sam_vit_z"], "sam_vit_z"),
        ("finetune", ["data.train={shards}/*.tar", "run.dir={model}"], "tiny.yaml"),
    ],
)
def test_run_that_cannot_begin_names_the_reason(
    command: str,
    overrides: list[str],
    named: str,
    tiny: Set,
    shards: Path,
    tmp_path: Path,
    here: InProcess,
) -> None:
    rest = [override.format(shards=shards, model=tiny.model) for override in overrides]
    assert named in here.mistake(command, *rest, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"weights": "garbage.pt", "model": "tiny.yaml"}, "garbage.pt"), ({}, "negative")],
)
def test_fault_found_after_torch_is_imported_is_one_line_too(
    changes: dict[str, str], named: str, tiny: Set, tmp_path: Path
) -> None:
    arguments = tiny.predict("--point", "9,2,0", out=tmp_path / "out", **changes)
    assert named in mistake(*arguments, folder=tiny.folder)


def test_training_from_the_command_line_ends_in_a_model_that_predicts(
    tiny: Set, shards: Path, tmp_path: Path, here: InProcess
) -> None:
    options = (
        f"data.train={shards}/set-000000.tar",
        f"model.name={tiny.model}",
        "masks.masks_per_image=2",
        f"run.dir={tmp_path / 'run'}",
    )
    done("finetune", "-c", "finetune/ti", "-c", "debug/cpu", *options)
    out = tmp_path / "model.safetensors"
    assert "model.safetensors" in here.done("consolidate", tmp_path / "run", out)
    here.done(*tiny.predict("--point", "20,20", weights=out, out=tmp_path / "masks"))
    assert mask_files(tmp_path / "masks") == ["mask_0.png"]
