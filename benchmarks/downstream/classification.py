"""Time a step of classification against timm's ViT in a plain loop with its Mixup.

Both have ViT-S's shape at 224 pixels, 1000 classes, drop path, mixup and cutmix, and AdamW in
float32. The plain loop is given normalised floats; our step normalises bytes.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.harness import (
    Row,
    alternate,
    peak_memory_rise,
    timed_rows,
)
from efficientsam_pl.data.class_config import MixConfig
from efficientsam_pl.data.mixing import mixes
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import mae_names
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import classify_optim
from efficientsam_pl.recipes.classification.module import ImageClassification
from efficientsam_pl.structures import ClassBatch

NAME = "downstream"
CONFIG = ClassifierConfig(vit=EncoderConfig(width=384, heads=6, image_size=224), drop_path=0.1)
_SMOOTHING = 0.1


def measure(quick: bool, seconds: float) -> list[Row]:
    """Rows of a step of ViT-S; the quick ones have a smaller batch and no memory."""
    batch, rounds = (4, 7) if quick else (16, 11)
    return measure_step(CONFIG, batch, rounds, seconds, memory=not quick)


def measure_step(
    config: ClassifierConfig, batch: int, rounds: int, seconds: float, memory: bool
) -> list[Row]:
    """Rows of a step's time and memory, and of the difference between the models.

    Args:
        config: The classifier; timm's has the same shape.
        batch: Images a step; even, for timm's Mixup.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
        memory: Whether to measure memory, which takes another two steps.
    """
    start = time.perf_counter()
    ours, plain = prepare(config, batch, "ours"), prepare(config, batch, "plain")
    taken = alternate(
        {"ours": ours, "plain": plain}, rounds, seconds - (time.perf_counter() - start)
    )
    work = (
        f"mixing, forward, loss, backward and AdamW, float32, batch {batch}; median of "
        f"{taken['ours'].rounds} rounds; reference: timm's ViT of the same shape in a plain loop"
    )
    ids = (f"{NAME}.classify_step", f"{NAME}.classify_step_processor_time")
    rows = timed_rows(ids, work, taken["ours"], taken["plain"], goal=1.05, images=batch)
    if memory:
        peaks = [peak_memory_rise(partial(prepare, config, batch, way)) for way in _WAYS]
        rows.append(
            Row(
                id=f"{NAME}.classify_step_peak_memory",
                work=f"rise of resident memory during a step of {batch} images",
                value=peaks[0] / 2**20,
                unit="MiB",
                reference=peaks[1] / 2**20,
            )
        )
    return [*rows, difference_row(config)]


_Way = Literal["ours", "plain"]
_WAYS: tuple[_Way, ...] = ("ours", "plain")


def prepare(config: ClassifierConfig, batch: int, way: _Way) -> Callable[[], object]:
    """Prepare a step with seeded weights, after a first one."""
    step = OurStep(config, batch) if way == "ours" else PlainStep(config, batch)
    step()
    return step


class OurStep:
    """The step as the trainer takes it, and the draws of a data worker."""

    def __init__(self, config: ClassifierConfig, batch: int) -> None:
        torch.manual_seed(0)
        self._stage = ImageClassification(
            Classifier(config), _SMOOTHING, classify_optim(), 1, lambda _: None
        )
        self._optimizer = build_optimizer(self._stage.model, classify_optim())
        side = config.vit.image_size
        self._image = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        self._label = torch.arange(batch) % config.classes
        self._step = 0

    def __call__(self) -> None:
        """Take one step."""
        output = self._stage.training_step(self._batch(), 0)
        output["loss"].backward()
        self._stage.configure_gradient_clipping(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1

    def _batch(self) -> ClassBatch:
        count, side = len(self._image), self._image.shape[-1]
        keys = torch.arange(count) + count * self._step
        valid = count * [True]
        slots = mixes(keys.tolist(), valid, MixConfig(group=count), side)
        return ClassBatch(
            image=self._image,
            label=self._label,
            partner=torch.tensor([slot.partner for slot in slots]),
            own_share=torch.tensor([slot.mix.own_share for slot in slots]),
            mix_box=torch.tensor([slot.mix.box for slot in slots]),
            sample_key=keys,
            valid=torch.tensor(valid),
            key=tuple(map(str, keys.tolist())),
        )


class PlainStep:
    """timm's model, Mixup and loss, and torch's AdamW."""

    def __init__(self, config: ClassifierConfig, batch: int) -> None:
        torch.manual_seed(0)
        self._model = timm_model(config)
        self._mixup = Mixup(0.8, 1.0, label_smoothing=_SMOOTHING, num_classes=config.classes)
        self._loss = SoftTargetCrossEntropy()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 1e-3, weight_decay=0.05)
        side = config.vit.image_size
        self._pixels = torch.randn(batch, 3, side, side)
        self._label = torch.arange(batch) % config.classes

    def __call__(self) -> None:
        """Take one step."""
        pixels, target = self._mixup(self._pixels.clone(), self._label)  # it mixes in place
        self._loss(self._model(pixels), target).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def timm_model(config: ClassifierConfig) -> Any:
    """Build timm's ViT of a classifier's shape."""
    vit = config.vit
    return VisionTransformer(
        img_size=vit.image_size,
        patch_size=vit.patch_size,
        embed_dim=vit.width,
        depth=vit.depth,
        num_heads=vit.heads,
        num_classes=config.classes,
        class_token=False,
        global_pool="avg",
        fc_norm=True,
        drop_path_rate=config.drop_path,
    )


def difference_row(config: ClassifierConfig) -> Row:
    """Compare the logits of both models with the same weights."""
    torch.manual_seed(0)
    ours, theirs = Classifier(config).eval(), timm_model(config).eval()
    torch.nn.init.normal_(ours.head.weight, std=0.05)  # its own start would hide differences
    state: dict[str, Tensor] = mae_names(ours.state_dict())
    theirs.load_state_dict(state | {"pos_embed": state["pos_embed"][:, 1:]})
    pixels = torch.randn(2, 3, config.vit.image_size, config.vit.image_size)
    with torch.inference_mode():
        difference = float((ours.classify(pixels) - theirs(pixels)).abs().max())
    return Row(
        id=f"{NAME}.classify_difference",
        work="largest absolute difference of the logits of both models with the same weights",
        value=difference,
        unit="",
        goal=1e-4,
    )
