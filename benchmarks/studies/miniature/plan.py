"""The comparisons of the miniature study, registered before it runs."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.miniature.sizes import Sizes
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.errors import UserError

SCRATCH, MAE, RANDOM, TEACHER, DISTILL = "scratch", "mae", "sami_random", "sami_teacher", "distill"
ARMS = {
    SCRATCH: "no pretraining",
    MAE: "MAE: normalised pixels of masked patches, MAE's decoder",
    RANDOM: "SAMI, features of a teacher of the same shape with random weights",
    TEACHER: "SAMI, features of the teacher that was trained here",
    DISTILL: "plain distillation of that teacher: all tokens visible, no decoder, MSE on the neck",
}
SUBSETS = ("few", "all")
MEASURES = {"box": "box mIoU", "click1": "1-click mIoU", "probe": "probe accuracy"}
RIVALS = (SCRATCH, MAE, RANDOM, DISTILL)
_FILE = "plan.json"
_CHANGEABLE = ("teacher", "teacher_encoder")  # may change until the teacher is good enough
EXPECTED = (
    "sami_teacher is ahead of scratch, mae and sami_random in box mIoU, 1-click mIoU and the "
    "probe, from few and from all images, by more from few",
    "mae is ahead of scratch from few images",
    "sami_random is not ahead of mae",
    "sami_teacher against distill: no expectation",
)
RULES = (
    "Scores are of held-out images that no stage has seen: the mean of COCO's, animals' and "
    "BSDS500's mIoU, so that each set counts alike.",
    "Differences are taken seed by seed: arms of a seed share the few images, the order of images "
    "and the fresh weights of what no file gives. A difference counts where the 95 % interval of "
    "its mean over the seeds (Student's t) excludes 0.",
    "Pretrained arms have the same images, steps, batch, learning rate and encoder; every arm is "
    "finetuned alike.",
)


@dataclass(frozen=True)
class Plan:
    """The registered plan: when, with which sizes, how many seeds."""

    registered: str  # date and time
    seeds: int
    sizes: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON, with what is compared and expected."""
        return {
            "registered": self.registered,
            "seeds": self.seeds,
            "arms": ARMS,
            "images": list(SUBSETS),
            "measures": list(MEASURES),
            "comparisons": [f"{TEACHER} less {rival}" for rival in RIVALS],
            "expected": list(EXPECTED),
            "rules": list(RULES),
            "sizes": self.sizes,
        }


def register(out: Path, sizes: Sizes, seeds: int) -> Plan:
    """Write the plan to the study's folder, or read the one that an earlier call has written.

    The teacher's shape and length are no part of it: they may change until it is good enough.

    Raises:
        UserError: The folder holds a study of other sizes.
    """
    file = out / _FILE
    given = {key: value for key, value in as_dict(sizes).items() if key not in _CHANGEABLE}
    if not file.is_file():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(Plan(now, seeds, given).as_json(), indent=1))
    content = json.loads(file.read_text())
    for key, value in given.items():
        if content["sizes"].get(key) != value:
            raise UserError(
                f"{out} holds a study with {key}={content['sizes'].get(key)}, not {value}: give "
                "another --out"
            )
    return Plan(content["registered"], content["seeds"], content["sizes"])
