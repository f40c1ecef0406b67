"""`efficientsam evaluate`: mIoU by named protocols and AP with a detector's boxes.

Any number of ranks share the images by their places, and meet in a folder of files; a killed
evaluation continues where it stopped. The rank that ends last writes the result.
"""

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from efficientsam_pl.cluster.launch import Launch, launch, note_progress
from efficientsam_pl.cluster.signals import Request, StopRequests, catch_signals
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import EvaluationSet, name_of, open_set
from efficientsam_pl.commands.evaluate.plots import draw
from efficientsam_pl.commands.evaluate.ranks import (
    device_name,
    device_of,
    start_name,
    stop_on_request,
)
from efficientsam_pl.commands.evaluate.result import RunNotes, merged, settings_of
from efficientsam_pl.commands.evaluate.summary import check_scored, summary
from efficientsam_pl.commands.evaluate.table import result_table
from efficientsam_pl.commands.evaluate.verification import changed_images
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.datasets.image_sources import LoadedImage, prefetch
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.baselines import FilledBox, GroundTruth
from efficientsam_pl.evaluation.evaluator import ImageEvaluator
from efficientsam_pl.evaluation.interfaces import PromptableModel
from efficientsam_pl.evaluation.protocols.detector_boxes import DetectorBoxes
from efficientsam_pl.evaluation.protocols.registry import protocol
from efficientsam_pl.evaluation.results.journal import Finished, ResultJournal
from efficientsam_pl.evaluation.results.record import ImageRecord, from_line
from efficientsam_pl.evaluation.results.result_file import write_result
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.inference.hub import load_model, weights_sha256
from efficientsam_pl.models.config import NAMED
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.retries import SourceLostError, set_store_patience

_DECODERS, _AHEAD = 2, 6  # threads that decode images, and decoded images in memory


@dataclass(frozen=True)
class _Work:
    """The work of a rank."""

    config: EvaluateConfig
    photos: EvaluationSet
    evaluator: ImageEvaluator
    parts: ResultJournal[ImageRecord]
    rank: Launch
    requests: StopRequests
    read: set[int] = field(default_factory=set)  # images that this process has read and hashed


def run(config: EvaluateConfig) -> None:
    """Evaluate the model or the baseline that the config names."""
    device = device_of(config)
    if config.baseline != "none":
        baseline = FilledBox() if config.baseline == "filled_box" else GroundTruth()
        evaluate(
            config,
            baseline,
            {"name": config.baseline.replace("_", " "), "baseline": config.baseline},
        )
        return
    name, weights = config.model.name, config.model.weights
    assert weights is not None, "it is among the config's needs"
    model = load_model(name, weights).to(device)
    description: dict[str, Any] = {
        "name": name if name in NAMED else Path(name or weights).stem,
        "weights_sha256": weights_sha256(weights),
        "resize": f"{model.config.resize} {model.config.encoder.image_size}",
        "precision": config.precision,
        "config": as_dict(model.config),
    }
    evaluate(config, EvaluatorModel(model, precision=config.precision), description)


def evaluate(
    config: EvaluateConfig, model: PromptableModel, about: Mapping[str, Any]
) -> Path | None:
    """Evaluate any promptable model.

    Args:
        config: Protocols and images; its model, accelerator and precision are not used.
        model: The model.
        about: The description of the model in the result: a `name`, and whatever distinguishes it
            from others, such as `weights_sha256` and `resize`.

    Returns:
        The result's file; None where other ranks have images left.

    Raises:
        UserError: A file cannot be used, the folder holds another evaluation's records, or no
            image or instance is left to score.
        SavedAndStopped: On a request to stop, or where a store stays away; the same command
            continues.
    """
    requests, begun = catch_signals(), time.monotonic()
    set_store_patience(config.store_patience_s)
    try:
        photos = open_set(config)
        if launch().rank == 0:
            for line in photos.findings():
                print(line, flush=True)
        evaluator = ImageEvaluator(
            model=model,
            protocols=tuple(map(protocol, config.protocols)),
            boxes=None
            if photos.detections is None
            else DetectorBoxes(
                rule=config.detector.rule, passes=2 if config.detector.second_pass else 1
            ),
            keeps_boxed=config.kind == "shards" and "box" in config.protocols,
            seed=config.seed,
            prompts_at_once=config.prompts_at_once,
        )
        evaluator.check()
        out = Path(config.out)
        parts = ResultJournal(out.with_suffix(".parts"), from_line)
        parts.begin(settings_of(config, photos, evaluator, about), start_name(), config.fresh)
        work = _Work(config, photos, evaluator, parts, launch(), requests)
        try:
            _score_images(work)
            return _merge(work, about, begun)
        except SourceLostError as error:
            kept = f"{error}; {_describe_kept(work)}; the same command continues"
            raise SourceLostError(kept) from error
    finally:
        requests.restore_handlers()


def _score_images(work: _Work) -> None:
    """Check those of this rank's images that have a record; score the others."""
    finished = work.parts.finished()
    _warn_torn(work, finished)
    done, world = finished.hashes(), work.rank.nodes * work.rank.ranks_per_node
    mine = work.photos.numbers[work.rank.rank :: world]
    left = [number for number in mine if number not in done]
    ready = prefetch(_reader(work), left, _DECODERS, _AHEAD)
    bar = work.rank.rank == 0 and sys.stdout.isatty()
    with (
        work.requests.saving(lambda: _describe_kept(work)),
        work.parts.writer(work.rank.rank) as writer,
    ):
        _verify(work, done, [number for number in mine if number in done], stoppable=True)
        shown = track(left, "Evaluating", len(left), transient=True, disable=not bar)
        for count, (number, read) in enumerate(zip(shown, ready, strict=True), 1):
            if writer.add(_record(work, number, read)) and work.rank.rank == 0:
                note_progress(len(done) + count)
            if work.requests.strongest is not Request.NONE and count < len(left):
                writer.sync()
                _stop(work, len(done) + count)


def _reader(work: _Work) -> Callable[[int], LoadedImage | CorruptSample]:
    return lambda number: work.photos.photos.read(work.photos.place(number))


def _record(work: _Work, number: int, read: LoadedImage | CorruptSample) -> ImageRecord:
    """Score an image."""
    if isinstance(read, CorruptSample):
        return ImageRecord(number, damage=(read.kind, name_of(read), read.detail))
    work.read.add(number)
    boxes = work.photos.boxes(number)
    record = work.evaluator.evaluate(number, read.image, read.about, boxes)
    return replace(record, sha256=read.sha256, turn=read.turn)


def _verify(
    work: _Work, hashes: Mapping[int, str], numbers: Sequence[int], stoppable: bool = False
) -> None:
    """Read scored images again, to be sure that they are still the same.

    Raises:
        UserError: An image changed or is missing.
        SavedAndStopped: On a request to stop, if `stoppable`.
    """

    def stop() -> None:
        if stoppable and work.requests.strongest is not Request.NONE:
            _stop(work, len(hashes))

    if changes := changed_images(work.photos, hashes, numbers, stop):
        raise work.parts.refusal(changes)
    work.read.update(numbers)


def _describe_kept(work: _Work) -> str:
    return f"photos that are done are kept in {work.parts.folder}"


def _merge(work: _Work, about: Mapping[str, Any], begun: float) -> Path | None:
    """Write the result, if every image has a record and no other rank of this start has done it."""
    out, start = Path(work.config.out), start_name()
    with work.parts.merging():
        finished = work.parts.finished()
        left = len(set(work.photos.numbers) - finished.places.keys())
        if left:
            print(
                f"rank {work.rank.rank} is done; others have {counted(left, 'photo')} left",
                flush=True,
            )
            return None
        hashes = finished.hashes()
        mark = f"{start} {len(hashes)}"
        if work.parts.mark() == mark and out.is_file():
            return out
        wanted = [n for n in work.photos.numbers if n in hashes and n not in work.read]
        _verify(work, hashes, wanted)
        notes = RunNotes(
            seconds=time.monotonic() - begun,
            ranks=work.rank.nodes * work.rank.ranks_per_node,
            host=platform.node(),
            device=device_name(work.config),
        )
        whole = merged(work.config, work.photos, work.evaluator, finished, about, notes)
        try:
            check_scored(whole.result, work.config.annotations or work.config.shards)
        except UserError:
            work.parts.discard()  # records of nothing would refuse the mended command
            raise
        write_result(whole.result, out)
        if work.config.plots:
            draw(whole, out)
        work.parts.set_mark(mark)
    rotated = exif_line(whole.turns)
    if rotated is not None:
        print(rotated)
    Console().print(result_table(whole.result))
    print(f"{summary(whole.result)} -> {out}", flush=True)
    return out


def _stop(work: _Work, done: int) -> None:
    stop_on_request(work.requests, work.rank, work.parts, done, len(work.photos.numbers))


def _warn_torn(work: _Work, finished: Finished[ImageRecord]) -> None:
    for name, lines in finished.torn.items():
        mine = name == f"rank-{work.rank.rank}.jsonl"
        if mine or (work.rank.rank == 0 and not _written_now(name, work.rank)):
            print(
                f"{work.parts.folder / name}: {counted(lines, 'line')} that a kill cut short; "
                "their images are scored again",
                file=sys.stderr,
            )


def _written_now(name: str, rank: Launch) -> bool:
    """Return whether another rank of this start may be writing the file at this moment."""
    return name in {f"rank-{other}.jsonl" for other in range(rank.nodes * rank.ranks_per_node)}
