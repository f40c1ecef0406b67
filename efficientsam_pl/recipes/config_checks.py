"""Checks of a command's whole config: keys without effect, metrics, teacher and student.

Imports no torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from functools import reduce
from typing import Any


def refuse_unused(config: Any, reason: str, *keys: str) -> None:
    """Refuse keys that are set in a config whose command does not read them.

    Args:
        config: A command's config.
        reason: The end of the message, such as `without features.dir=`.
        keys: Full keys, such as `features.grid`, with defaults by which a set one is recognised.

    Raises:
        ValueError: One of them has another value than its default.
    """
    defaults = {field.name: field.default_factory for field in fields(config)}
    for key in keys:
        section, *names = key.split(".")
        value = reduce(getattr, names, getattr(config, section))
        default: Any = reduce(getattr, names, defaults[section]())  # type: ignore[operator]
        if value != default:
            raise ValueError(f"{key}={value} has no effect {reason}")


def check_pretraining_keys(config: Any) -> None:
    """Refuse what neither `pretrain` nor `embed-teacher` reads under such a config.

    Raises:
        ValueError: Names the key.
    """
    _check_data_keys(config)
    if config.features.dir is None:
        keys = ("kind", "views", "seed", "numbers", "grid")
        refuse_unused(config, "without features.dir=", *(f"features.{key}" for key in keys))
    if config.teacher.kind != "timm":
        refuse_unused(config, f"with teacher.kind={config.teacher.kind}", "teacher.timm_name")
    if config.teacher.kind != "sam":
        refuse_unused(config, f"with teacher.kind={config.teacher.kind}", "teacher.output")


def check_finetuning_keys(config: Any) -> None:
    """Refuse what `finetune` does not read under such a config.

    Raises:
        ValueError: Names the key.
    """
    _check_data_keys(config)
    refuse_unused(
        config,
        "in finetuning, which draws at every validation: trainer.validate_every_steps=",
        "trainer.picture_every_steps",
    )
    rounds = config.prompts.rounds
    if rounds != "interactive":  # prompts.max_clicks may stand in a recipe below an interactive run
        reason = f"with prompts.rounds={rounds}"
        refuse_unused(config, reason, "prompts.corrections", "prompts.repeats")


def check_evaluation_keys(config: Any) -> None:
    """Refuse what `evaluate` does not read under such a config.

    Raises:
        ValueError: Names the key.
    """
    if not config.detector.results:
        refuse_unused(config, "without detector.results=", "detector.rule")
    if config.baseline != "none" and config.precision != "fp32":
        raise ValueError(
            f"precision={config.precision} has no effect with baseline={config.baseline}"
        )


def _check_data_keys(config: Any) -> None:
    if config.data.cache_dir is None:
        refuse_unused(config, "without data.cache_dir=", "data.cache_gib")
    coco = config.data.coco
    if coco.annotations is None:
        refuse_unused(config, "without data.coco.annotations=", "data.coco.heldout_fraction")
    elif coco.heldout_annotations is not None:
        reason = f"beside data.coco.heldout_annotations={coco.heldout_annotations}"
        refuse_unused(config, reason, "data.coco.heldout_fraction")


def check_best_metric(name: str | None, logged: Sequence[str]) -> None:
    """Refuse a metric that no validation logs.

    Args:
        name: The value of trainer.best_metric=.
        logged: Names of the metrics that are logged.

    Raises:
        ValueError: Names the nearest metric, and all.
    """
    if name is None or name in logged:
        return
    near = difflib.get_close_matches(name, logged, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"trainer.best_metric={name} is not logged; did you mean {near}? There are "
        f"{', '.join(logged)}"
    )


def check_teacher(config: Any) -> None:
    """Refuse a teacher that contradicts the student, its stored features or the trainer.

    Raises:
        ValueError: Names the keys.
    """
    teacher, student, features = config.teacher, config.sami.student, config.features
    if teacher.kind == "pixels":
        if features.dir is not None:
            raise ValueError(
                f"features.dir={features.dir} has no meaning with teacher.kind=pixels: the photo "
                "is its own target"
            )
        return
    if teacher.grid() < student.grid():
        raise ValueError(
            f"teacher.image_size={teacher.image_size} gives {teacher.grid()} tokens a side, fewer "
            f"than the student's {student.grid()} (sami.student.image_size={student.image_size})"
        )
    if teacher.sharding == "sharded" and config.trainer.strategy != "fsdp":
        raise ValueError(
            f"teacher.sharding=sharded needs trainer.strategy=fsdp, which is "
            f"{config.trainer.strategy}"
        )
    if features.dir is not None and features.kind == "photos":
        if teacher.kind != "sam":
            raise ValueError(
                f"features.kind=photos needs teacher.kind=sam, which is {teacher.kind}"
            )
        if teacher.grid() % features.grid:
            raise ValueError(
                f"features.grid={features.grid} must divide the teacher's {teacher.grid()} tokens "
                f"a side (teacher.image_size={teacher.image_size})"
            )
