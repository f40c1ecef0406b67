"""Configs: what loads, and the one-line message for what does not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.cli.config_options import check_inputs
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
BOTH_STAGES = (PretrainConfig, FinetuneConfig)
ROOTS_OF = {
    "pretrain": (PretrainConfig,),
    "finetune": (FinetuneConfig,),
    "evaluate": (EvaluateConfig,),
    "debug": BOTH_STAGES,
    "cluster": BOTH_STAGES,
    "data": BOTH_STAGES,
    "models": (SegmenterConfig,),
}
DOWNSTREAM = {  # by the beginning of the file's name
    "classify": ClassifyConfig,
    "vitdet": DetectConfig,
    "mask2former": SemanticTrainingConfig,
}
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def roots_of(path: Path) -> tuple[type[Any], ...]:
    folder = path.relative_to(ROOT / "configs").parent
    if folder.name == "downstream":
        return (DOWNSTREAM[path.stem.partition("_")[0]],)
    return ROOTS_OF[folder.name] if folder.name else (QuickstartConfig,)


def mistake(root: type[Any], files: list[str], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configs.load(root, files, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_shipped_file_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SA1B", "IMAGENET"):
        monkeypatch.setenv(variable, "/data")
    for root in roots_of(path):
        assert isinstance(configs.load(root, [str(path)], []), root)


def test_every_folder_of_configs_is_known_here() -> None:
    assert len(FILES) >= 7
    assert all(roots_of(path) for path in FILES)


@pytest.mark.parametrize("stage", ["pretrain/ti", "pretrain/s", "pretrain/b"])
@pytest.mark.parametrize("place", ["cluster/1x8", "debug/cpu"])
def test_what_and_where_go_together_in_pretraining(stage: str, place: str) -> None:
    configs.load(PretrainConfig, [stage, place], [])


@pytest.mark.parametrize("stage", ["finetune/ti", "finetune/s"])
@pytest.mark.parametrize("place", ["cluster/1x8", "debug/cpu"])
def test_what_and_where_go_together_in_finetuning(stage: str, place: str) -> None:
    configs.load(FinetuneConfig, [stage, place], [])


def test_learning_rate_is_scaled_with_the_batch() -> None:
    """MAE's rule: 1.5e-4 for each 256 images."""
    optim = PretrainConfig().optim
    assert optim.for_batch(4096).peak_lr == 2.4e-3
    assert optim.for_batch(256).peak_lr == pytest.approx(1.5e-4)
    assert optim.for_batch(256).for_batch(4096).peak_lr == pytest.approx(1.5e-4)  # once
    assert FinetuneConfig().optim.for_batch(8).peak_lr == 4e-4


def test_defaults_are_the_papers_recipe() -> None:
    pretrain, finetune = PretrainConfig(), FinetuneConfig()
    # 400 epochs of 1 281 167 images at batch 4096 are 125 114 steps; 40 epochs warm up
    assert pretrain.trainer.max_steps == pytest.approx(400 * 1_281_167 / 4096, rel=0.01)
    assert pretrain.optim.warmup_steps == pytest.approx(40 * 1_281_167 / 4096, rel=0.01)
    assert (pretrain.optim.peak_lr, pretrain.optim.betas) == (2.4e-3, (0.9, 0.95))
    assert pretrain.sami.mask_ratio == 0.75
    # 5 epochs of 11.2 M images at batch 128
    assert finetune.trainer.max_steps == pytest.approx(5 * 11_185_362 / 128, rel=0.01)
    assert (finetune.optim.peak_lr, finetune.optim.weight_decay) == (4e-4, 0.1)


@pytest.mark.parametrize("root", [PretrainConfig, FinetuneConfig, EvaluateConfig, QuickstartConfig])
def test_dumped_config_loads_to_the_same_config(root: type[Any], tmp_path: Path) -> None:
    overrides = [] if root in (EvaluateConfig, QuickstartConfig) else ["optim.clip_norm=0.5"]
    config = configs.load(root, [], overrides)
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config))
    assert configs.load(root, [str(file)], []) == config
    assert configs.from_dict(root, configs.as_dict(config)) == config


@pytest.mark.parametrize("name", NAMED)
def test_named_segmenter_survives_being_dumped(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(configs.dump(NAMED[name]))
    assert segmenter_config(str(file)) == NAMED[name] == segmenter_config(name)


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("run: {seed: 1, dir: here}\ndata: {workers: 1}\n")
    second.write_text("run: {seed: 2}\ndata: {workers: 2}\n")
    config = configs.load(PretrainConfig, [str(first), str(second)], ["data.workers=3"])
    assert (config.run.seed, config.run.dir, config.data.workers) == (2, "here", 3)


def test_shipped_file_is_found_by_its_short_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = configs.load(FinetuneConfig, ["finetune/s"], [])
    assert shipped.model.name == "efficient_sam_s"
    assert configs.load(FinetuneConfig, ["finetune/s.yaml"], []) == shipped


def test_file_at_hand_goes_before_the_shipped_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("finetune").mkdir()
    Path("finetune/s").write_text("run: {seed: 77}\n")
    assert configs.load(FinetuneConfig, ["finetune/s"], []).run.seed == 77


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert configs.load(PretrainConfig, [str(tmp_path / "empty.yaml")], []) == PretrainConfig()


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("optim.warmup=3", "optim.warmup", "optim.warmup_steps"),
        ("trainer.max_stepz=3", "trainer.max_stepz", "trainer.max_steps"),
        ("sami.student.widht=96", "sami.student.widht", "sami.student.width"),
        ("warmup_steps=3", "warmup_steps", "optim.warmup_steps"),
        ("optimm.peak_lr=1", "optimm.peak_lr", "optim.peak_lr"),
        ("model.weights=x.pt", "model.weights", "teacher.weights"),  # no such section either
    ],
)
def test_unknown_key_is_named_in_full_with_the_nearest_right_one(
    override: str, key: str, nearest: str
) -> None:
    assert mistake(PretrainConfig, [], override) == f"unknown key {key}; did you mean {nearest}?"


def test_unknown_key_in_a_file_names_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {encoder: {dept: 4}}\n")
    message = mistake(PretrainConfig, [str(file)])
    assert message == (
        f"{file}: unknown key teacher.encoder.dept; did you mean teacher.encoder.depth?"
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.max_steps=soon", "trainer.max_steps", "soon"),
        ("trainer.max_steps=1.5", "trainer.max_steps", "1.5"),
        ("optim.peak_lr=high", "optim.peak_lr", "high"),
        ("run.resume=null", "run.resume", "None"),
        ("run.resume=", "run.resume", "empty"),
        ("run.resume=[]", "run.resume", "[]"),
        ("run.dir=null", "run.dir", "None"),
        ("run.dir=", "run.dir", "empty"),
        ("optim.betas=null", "optim.betas", "Optional"),
        ("optim.betas=[0.9]", "optim.betas", "length"),
        ("trainer=7", "trainer", "int"),
        ("run=null", "run", "Optional"),
        ("run.dir=${nowhere}", "run.dir", "nowhere"),
        ("run.dir=${oc.env:EFFICIENTSAM_NO_SUCH}", "run.dir", "EFFICIENTSAM_NO_SUCH"),
        ("trainer.precision=32", "trainer.precision", "fp32"),
    ],
)
def test_wrong_type_names_key_and_value(override: str, key: str, value: str) -> None:
    message = mistake(PretrainConfig, [], override)
    assert key in message
    assert value in message


@pytest.mark.parametrize(
    ("root", "overrides", "message"),
    [
        (
            PretrainConfig,
            ["optim.warmup_steps=5", "trainer.max_steps=5"],
            "optim.warmup_steps=5 must be below trainer.max_steps=5",
        ),
        (
            PretrainConfig,
            ["trainer.global_batch=10", "trainer.micro_batch=4"],
            "trainer.global_batch=10 must be a multiple of trainer.micro_batch=4 times 1 ranks",
        ),
        (
            FinetuneConfig,
            ["prompts.max_clicks=7"],
            "prompts.max_clicks=7 must not exceed masks.clicks=6, the points drawn for each mask",
        ),
        (
            PretrainConfig,
            ["sami.student.width=100"],
            "sami.student.width=100 must be a multiple of sami.student.heads=3",
        ),
        (
            PretrainConfig,
            ["teacher.image_size=112"],
            "teacher.image_size=112 gives 7 tokens a side, fewer than the student's 14 "
            "(sami.student.image_size=224)",
        ),
        (
            QuickstartConfig,
            ["pretrain.crop.min_area=2"],
            "pretrain.crop.min_area=2.0 must lie in (0, pretrain.crop.max_area=1.0]",
        ),
        (
            FinetuneConfig,
            ["model.weights=/runs/lr=1/a.pt", "model.encoder=/b.pt"],
            "model.weights=/runs/lr=1/a.pt holds the encoder already; drop it or "
            "model.encoder=/b.pt",
        ),
        (FinetuneConfig, ["run.seed=-1"], "run.seed=-1 must lie in [0, 2**63)"),
        (
            FinetuneConfig,
            ["trainer.best_metric=heldout/click5_miou"],
            "trainer.best_metric=heldout/click5_miou is not logged; did you mean "
            "heldout/click3_miou? There are heldout/loss, "
            "train/loss, heldout/ap, heldout/ap50, heldout/ap75, heldout/ap_small, "
            "heldout/ap_medium, heldout/ap_large, heldout/ar100, heldout/box_miou, "
            "heldout/filled_box_miou, heldout/filled_box_grid_miou, heldout/reachable_miou, "
            "heldout/click1_miou, heldout/click3_miou, heldout/box_miou_small, "
            "heldout/box_miou_medium, heldout/box_miou_large, heldout/scored_photos, "
            "heldout/scored_masks, heldout/damaged_photos",
        ),
        (
            PretrainConfig,
            ["trainer.best_metric=heldout/los"],  # held out or not
            "trainer.best_metric=heldout/los is not logged; did you mean heldout/loss? There are "
            "heldout/loss, train/loss, heldout/loss_all, heldout/loss_masked, "
            "heldout/loss_visible, heldout/cosine, train/loss_all, train/loss_masked, "
            "train/loss_visible, train/cosine",
        ),
        (
            FinetuneConfig,
            ["trainer.picture_every_steps=100"],
            "trainer.picture_every_steps=100 has no effect in finetuning, which draws at every "
            "validation: trainer.validate_every_steps=",
        ),
        (
            QuickstartConfig,
            ["finetune.trainer.picture_every_steps=100"],
            "finetune.trainer.picture_every_steps=100 has no effect in finetuning, which draws at "
            "every validation: finetune.trainer.validate_every_steps=",
        ),
        (
            FinetuneConfig,
            ["prompts.corrections=4"],
            "prompts.corrections=4 has no effect with prompts.rounds=drawn",
        ),
        (
            FinetuneConfig,
            ["data.coco.heldout_fraction=0.3"],
            "data.coco.heldout_fraction=0.3 has no effect without data.coco.annotations=",
        ),
        (
            FinetuneConfig,
            ["data.coco.crowds=objects"],
            "data.coco.crowds=objects has no effect without data.coco.annotations=",
        ),
        (
            PretrainConfig,
            ["data.cache_gib=5"],
            "data.cache_gib=5.0 has no effect without data.cache_dir=",
        ),
        (
            PretrainConfig,
            ["features.grid=32"],
            "features.grid=32 has no effect without features.dir=",
        ),
        (
            PretrainConfig,
            ["teacher.timm_name=vit_base_patch32_224"],
            "teacher.timm_name=vit_base_patch32_224 has no effect with teacher.kind=sam",
        ),
        (
            EvaluateConfig,
            ["detector.rule=token_0"],
            "detector.rule=token_0 has no effect without detector.results=",
        ),
        (
            FinetuneConfig,
            ["validation={pictured: 2}", "trainer.visualized_images=-1"],
            "trainer.visualized_images=-1 must be at least 0",
        ),
        (
            PretrainConfig,
            ["optim.layer_decay=0.8"],
            "optim.layer_decay=0.8 is for finetuning; a fresh encoder's blocks all have as much "
            "to learn",
        ),
        (
            PretrainConfig,
            ["data.coco.annotations=a.json", "data.coco.images=b"],
            "data.coco.annotations=a.json is for finetuning; pretraining reads data.train=",
        ),
        (
            FinetuneConfig,
            ["data.train=a", "data.coco.annotations=a.json", "data.coco.images=b"],
            "data.coco.annotations=a.json stands instead of data.train=, data.mixture= and "
            "data.heldout=, which must not be given",
        ),
        (
            FinetuneConfig,
            ["prompts.box_jitter_max_px=-5"],
            "prompts.box_jitter_max_px=-5.0 must be at least 0",
        ),
        (
            PretrainConfig,
            ["teacher.sharding=sharded"],
            "teacher.sharding=sharded needs trainer.strategy=fsdp, which is auto",
        ),
        (
            PretrainConfig,
            ["teacher.kind=pixels", "features.dir=/f"],
            "features.dir=/f has no meaning with teacher.kind=pixels: the photo is its own target",
        ),
        (
            PretrainConfig,
            ["teacher.kind=pixels", "teacher.weights=a.pth"],
            "teacher.weights=a.pth has no meaning with teacher.kind=pixels",
        ),
        (
            PretrainConfig,
            ["features={dir: /f, kind: photos, grid: 24}", "teacher.image_size=1024"],
            "features.grid=24 must divide the teacher's 64 tokens a side (teacher.image_size=1024)",
        ),
        (
            PretrainConfig,
            ["features.dir=/f", "features.kind=photos", "teacher.kind=timm"],
            "features.kind=photos needs teacher.kind=sam, which is timm",
        ),
        (
            PretrainConfig,
            ["teacher.kind=timm", "teacher.timm_name=vit"],
            "teacher.timm_name=vit must contain its patch size, as patch16",
        ),
        (
            PretrainConfig,
            ["teacher.kind=timm", "teacher.timm_name=vit_base_patch32_clip_224"],
            "teacher.image_size=224 gives 7 tokens a side, fewer than the student's 14 "
            "(sami.student.image_size=224)",
        ),
        (
            EvaluateConfig,
            ["kind=coco", "shards=a.tar"],
            "shards=a.tar needs kind=shards, not coco",
        ),
        (
            EvaluateConfig,
            ["kind=lvis", "crowds=objects"],
            "crowds=objects needs kind=coco, not lvis",
        ),
        (
            EvaluateConfig,
            ["annotations=a.json"],
            "annotations=a.json needs kind=coco or kind=lvis, not shards",
        ),
        (
            EvaluateConfig,
            ["detector.results=a.json"],
            "detector.results=a.json needs kind=coco or kind=lvis, not shards",
        ),
        (
            EvaluateConfig,
            ["detector.second_pass=true"],
            "detector.second_pass=True needs detector.results=FILE",
        ),
        (
            EvaluateConfig,
            ["protocols=[box,clicks]"],
            "protocols=clicks is none of box, click_center, click_random_K, click_iterative_K",
        ),
        (
            EvaluateConfig,
            ["protocols=[click_random_0]"],
            "protocols=click_random_0 is none of box, click_center, click_random_K, "
            "click_iterative_K",
        ),
        (EvaluateConfig, ["protocols=[box,box]"], "protocols=box stands twice"),
        (
            EvaluateConfig,
            ["protocols=[]"],
            "protocols=[] and no detector.results= leave nothing to ask",
        ),
        (EvaluateConfig, ["photos=0"], "photos=0 must be at least 1"),
        (EvaluateConfig, ["prompts_at_once=0"], "prompts_at_once=0 must be at least 1"),
        (EvaluateConfig, ["out=scores.txt"], "out=scores.txt must end in .json"),
        (
            EvaluateConfig,
            ["baseline=ground_truth", "model.weights=a.pt"],
            "baseline=ground_truth stands instead of a model, not beside model.weights=a.pt",
        ),
        (
            EvaluateConfig,
            ["baseline=filled_box"],
            "baseline=filled_box fills boxes and knows no clicks, so not click_random_1: give "
            "protocols=[box]",
        ),
        (PretrainConfig, ["features.views=0"], "features.views=0 must be at least 1"),
        (PretrainConfig, ["trainer.ema_decay=1"], "trainer.ema_decay=1.0 must lie in (0, 1)"),
        (PretrainConfig, ["optim.peak_lr_batch=0"], "optim.peak_lr_batch=0 must be at least 1"),
    ],
)
def test_contradiction_names_both_full_keys_and_both_numbers(
    root: type[Any], overrides: list[str], message: str
) -> None:
    assert mistake(root, [], *overrides) == message


def test_missing_file_is_named() -> None:
    message = mistake(PretrainConfig, ["pretrain/xxl"])
    assert message.startswith("no such config file: pretrain/xxl; ")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00", "just words"])
def test_file_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert str(file) in mistake(PretrainConfig, [str(file)])


@pytest.mark.parametrize("override", ["trainer.max_steps", "--fast", "=3", "run.dir=[1", "[=1"])
def test_override_that_cannot_be_read_is_quoted(override: str) -> None:
    assert repr(override) in mistake(PretrainConfig, [], override)


@pytest.mark.parametrize(
    ("root", "overrides", "message"),
    [
        (PretrainConfig, [], "data.train= must be given"),
        (FinetuneConfig, [], "data.train= must be given"),
        (EvaluateConfig, [], "shards= must be given"),
        (EvaluateConfig, ["shards=a"], "model.weights= must be given"),
        (EvaluateConfig, ["kind=coco"], "annotations= must be given"),
        (EvaluateConfig, ["kind=lvis", "annotations=a.json"], "images= must be given"),
        (
            EvaluateConfig,
            [
                "model.name=efficient_sam_ti",
                f"model.weights={__file__}",
                "shards=a",
                "protocols=[click_iterative_2]",
            ],
            "protocols=click_iterative_2 needs negative clicks, which "
            "model.name=efficient_sam_ti does not know",
        ),
        (
            EvaluateConfig,
            [
                "model.name=efficient_sam_ti",
                f"model.weights={__file__}",
                "shards=a",
                "protocols=[click_random_7]",
            ],
            "protocols=click_random_7 makes prompts of 7 points (a box counts as two), more than "
            "the 6 that model.name=efficient_sam_ti takes",
        ),
        (
            EvaluateConfig,
            [
                "model.name=efficient_sam_ti",
                f"model.weights={__file__}",
                *("kind=coco", "annotations=a", "images=b"),
                *(f"detector.results={__file__}", "detector.second_pass=true"),
            ],
            "detector.second_pass=true needs mask prompts, which model.name=efficient_sam_ti does "
            "not know",
        ),
        (
            PretrainConfig,
            ["data.train=a", "teacher.weights=gone.pth"],
            "teacher.weights: no such file: gone.pth",
        ),
        (
            FinetuneConfig,
            ["data.train=a", "model.encoder=gone.safetensors"],
            "model.encoder: no such file: gone.safetensors",
        ),
        (
            FinetuneConfig,
            ["data.train=a", "prompts.max_clicks=7", "masks.clicks=7"],
            "prompts.max_clicks makes prompts of 7 points (a box counts as two), more than the 6 "
            "that model.name=efficient_sam_ti takes",
        ),
    ],
)
def test_a_missing_required_key_is_named(
    root: type[Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_inputs(configs.load(root, [], overrides))
    assert str(caught.value) == message


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="sam_vit_c") as caught:
        segmenter_config("sam_vit_c")
    assert all(name in str(caught.value) for name in NAMED)


def test_configs_load_without_torch_and_numpy() -> None:
    program = (
        "import sys\n"
        "from efficientsam_pl.cli import main as cli\n"
        "from efficientsam_pl.config.load import load\n"
        "from efficientsam_pl.recipes.sami.config import PretrainConfig\n"
        "from efficientsam_pl.commands.quickstart.config import QuickstartConfig\n"
        "load(QuickstartConfig, ['quickstart'], [])\n"
        "load(PretrainConfig, ['pretrain/ti', 'debug/cpu'], [])\n"
        "cli.main(['finetune', '-c', 'finetune/ti', '--print-config'])\n"
        "cli.main(['finetune', 'optim.warmup=1'])\n"
        "heavy = {'torch', 'numpy', 'lightning', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("root", "section"), [(FinetuneConfig, ""), (QuickstartConfig, "finetune.")]
)
def test_old_key_is_accepted_with_one_warning_that_names_the_new_one(
    root: type[Any], section: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "old.yaml"
    inner = "validation: {photos: 5, pictured: 2}"
    file.write_text(f"finetune: {{{inner}}}" if section else inner)
    loaded = configs.load(root, [str(file)], [f"{section}validation.pictured=3"])
    stage = loaded.finetune if section else loaded
    assert (stage.trainer.visualized_images, stage.validation.photos) == (3, 5)
    assert [record.getMessage() for record in caplog.records] == [
        f"{section}validation.pictured= is now {section}trainer.visualized_images=; "
        "the old name still works"
    ]


def test_old_key_beside_its_new_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("validation: {pictured: 2}\ntrainer: {visualized_images: 3}")
    assert mistake(FinetuneConfig, [str(file)]) == (
        "validation.pictured= is now trainer.visualized_images=, which is given too; drop the first"
    )


def test_new_key_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for root in BOTH_STAGES:
        assert configs.load(root, [], ["trainer.visualized_images=0"]).trainer.max_steps > 0
    assert caplog.records == []
