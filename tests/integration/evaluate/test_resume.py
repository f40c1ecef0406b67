"""`evaluate` on several ranks, killed, stopped and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.evaluate.conftest import DiscSet


ROOT = Path(__file__).resolve().parents[3]
PHOTOS = 7  # of the set of discs
# The command with every photo taking its time, so that it can be killed amid them
SLOW = """\
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from efficientsam_pl.evaluation.evaluator import ImageEvaluator
quick = ImageEvaluator.evaluate
def slow(*given, **named):
    time.sleep(0.4)
    return quick(*given, **named)
ImageEvaluator.evaluate = slow
from efficientsam_pl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def started(arguments: list[str], rank: int = 0, world: int = 1, slow: bool = False) -> Any:
    """A process of its own, as torchrun starts one."""
    program = ["-c", SLOW] if slow else ["-m", "efficientsam_pl"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RANK": str(rank),
        "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "here",
        "MASTER_PORT": "1234",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(*processes: Any, code: int = 0) -> list[str]:
    told = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, err
        told.append(out + err)
    return told


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(discs: "DiscSet", reference: Path, tmp_path: Path) -> None:
    arguments = discs.arguments(f"out={tmp_path}/a.json")
    told = ended(*(started(arguments, rank, 2) for rank in range(2)))
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)
    assert sum("a.json" in one for one in told) == 1  # one of them has written it
    assert discs.scored_photos(tmp_path / "a.parts") == list(range(40, 40 + PHOTOS))
    for rank in range(2):
        lines = (tmp_path / f"a.parts/rank-{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["photo"] for line in lines] == list(
            range(40 + rank, 40 + PHOTOS, 2)
        )


def killed_amid(arguments: list[str], folder: Path, by: signal.Signals, code: int) -> str:
    """Starts the command, ends it after a few photos, and gives what it said."""
    process = started(arguments, slow=True)
    file, until = folder / "rank-0.jsonl", time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(by)
    [told] = ended(process, code=code)
    return told


@pytest.mark.slow
def test_killed_evaluation_goes_on_with_two_ranks_and_scores_nothing_twice(
    discs: "DiscSet", reference: Path, tmp_path: Path
) -> None:
    arguments, parts = discs.arguments(f"out={tmp_path}/a.json"), tmp_path / "a.parts"
    killed_amid(arguments, parts, signal.SIGKILL, -signal.SIGKILL)
    before = discs.scored_photos(parts)
    assert 2 <= len(before) < PHOTOS
    with (parts / "rank-0.jsonl").open("a") as file:
        file.write('{"photo":46,"instan')  # what a crash of the machine leaves
    told = ended(*(started(arguments, rank, 2) for rank in range(2)))
    assert "rank-0.jsonl: 1 line that a kill cut short" in told[0]
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)
    assert discs.scored_photos(parts) == list(range(40, 40 + PHOTOS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "why"),
    [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C; the same command continues")],
)
def test_evaluation_that_is_asked_to_stop_finishes_its_image(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str],
    number: signal.Signals, code: int, why: str,
) -> None:  # fmt: skip
    arguments, parts = discs.arguments(f"out={tmp_path}/a.json"), tmp_path / "a.parts"
    told = killed_amid(arguments, parts, number, code)
    assert re.search(rf"efficientsam: \d of 7 photos are done; stopped, since it got {why}\n", told)
    assert not (tmp_path / "a.json").exists()
    run(arguments)
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)
    assert discs.scored_photos(parts) == list(range(40, 40 + PHOTOS))


def test_images_of_another_model_are_not_mixed_in(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    out = f"out={tmp_path}/a.json"
    other = f"model.weights={discs.folder}/other.safetensors"
    run(discs.arguments(out, other))
    first = discs.numbers(tmp_path / "a.json")
    line = run(discs.arguments(out), code=2)
    assert "a.parts holds another evaluation's photos: model.weights_sha256=" in line
    assert "fresh=true" in line
    assert discs.numbers(tmp_path / "a.json") == first != discs.numbers(reference)
    run(discs.arguments(out, "fresh=true"))
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=1", "seed=0 for 1"),
        ("protocols=[box]", "protocols.click_center"),
        ("detector.rule=token_0", 'mask_rule="box_iou" for "token_0"'),
        ("photos=3", "data.photos=7 for 3"),
    ],
)
def test_what_differs_from_the_images_at_hand_is_named(
    change: str, key: str, discs: "DiscSet", reference: Path, run: Callable[..., str]
) -> None:
    assert key in run(discs.arguments(f"out={reference}", change), code=2)


def test_done_evaluation_is_not_done_again(
    discs: "DiscSet", reference: Path, run: Callable[..., str]
) -> None:
    before = discs.numbers(reference)
    reference.unlink()
    parts = reference.with_suffix(".parts")
    lines = (parts / "rank-0.jsonl").read_bytes()
    assert "7 photos" in run(discs.arguments(f"out={reference}"))
    assert discs.numbers(reference) == before
    assert (parts / "rank-0.jsonl").read_bytes() == lines
