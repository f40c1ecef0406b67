"""`efficientsam evaluate` of a classifier: top-1 and top-5 accuracy on labelled shards.

Ranks share batches of images by their places and meet in a folder of files, as in evaluations of
masks. A batch holds the same images on any number of ranks, so that every logit is the same too.
"""

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from efficientsam_pl.cluster.launch import Launch, launch, note_progress
from efficientsam_pl.cluster.signals import Request, StopRequests, catch_signals
from efficientsam_pl.commands.classification.result import Scored, class_table, merged, settings_of
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import name_of
from efficientsam_pl.commands.evaluate.ranks import (
    device_name,
    device_of,
    start_name,
    stop_on_request,
)
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.commands.evaluate.verification import changed_images
from efficientsam_pl.config.load import ConfigError, as_dict
from efficientsam_pl.data.class_list import packed_class_names
from efficientsam_pl.data.datasets.image_sources import prefetch
from efficientsam_pl.data.datasets.labelled_images import LabelledImage, LabelledImages
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.class_record import TOP, ClassRecord, class_record
from efficientsam_pl.evaluation.results.journal import ResultJournal
from efficientsam_pl.evaluation.results.result_file import write_result
from efficientsam_pl.inference.classifier import load_classifier, probabilities, scoring_view
from efficientsam_pl.inference.hub import weights_sha256
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.retries import set_store_patience

_BATCH = 32  # images; part of what the logits' last digits depend on
_DECODERS, _AHEAD = 2, 2 * _BATCH  # threads that decode, and decoded images in memory
_NO_EFFECT = ("protocols", "detector", "prompts_at_once", "seed", "crowds", "exif_orientation")


@dataclass(frozen=True)
class _Work:
    """The work of a rank."""

    config: EvaluateConfig
    model: Classifier
    scored: Scored
    journal: ResultJournal[ClassRecord]
    rank: Launch
    requests: StopRequests
    read: set[int] = field(default_factory=set)  # images that this process has read and hashed

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.rank.nodes * self.rank.ranks_per_node

    def kept(self) -> str:
        """Say where finished images are."""
        return f"photos that are done are kept in {self.journal.folder}"


def run(config: EvaluateConfig) -> None:
    """Evaluate the classifier that the config names.

    Raises:
        UserError: Keys that have no effect here, a file that cannot be used, or no image to score.
        SavedAndStopped: On a request to stop; the same command continues.
    """
    _check(config)
    requests, begun = catch_signals(), time.monotonic()
    set_store_patience(config.store_patience_s)
    try:
        weights = config.model.weights
        assert weights is not None, "it is among the config's needs"
        model = load_classifier(weights).to(device_of(config))
        scored = _open(config, model.config, weights)
        journal = ResultJournal(Path(config.out).with_suffix(".parts"), class_record)
        journal.begin(settings_of(scored), start_name(), config.fresh)
        work = _Work(config, model, scored, journal, launch(), requests)
        _score(work)
        _merge(work, begun)
    finally:
        requests.restore_handlers()


def _check(config: EvaluateConfig) -> None:
    if config.kind != "shards":
        raise ConfigError(f"kind={config.kind}: a classifier is scored on shards")
    if config.model.name is not None:
        raise ConfigError(f"model.name={config.model.name} has no effect with a classifier's file")
    plain = EvaluateConfig()
    for key in _NO_EFFECT:
        if getattr(config, key) != getattr(plain, key):
            raise ConfigError(f"{key}={getattr(config, key)} has no effect with a classifier")
    if config.plots:
        raise ConfigError("plots=true has no effect with a classifier")


def _open(config: EvaluateConfig, model: ClassifierConfig, weights: str) -> Scored:
    """Open the set and compare its classes with the model's."""
    shards = open_shards(config.shards)
    names = packed_class_names(shards, "shards")
    if names and model.labels and names != model.labels:
        unknown = [name for name in names if name not in model.labels]
        example = f", such as {unknown[0]}" if unknown else ", in another order"
        raise UserError(
            f"shards: the {len(names)} classes of {config.shards} are not the "
            f"{len(model.labels)} of {weights}{example}; pack the set from folders with the "
            "same names"
        )
    images = LabelledImages(shards, scoring_view(model), model.classes)
    about = {
        "name": Path(weights).stem,
        "weights_sha256": weights_sha256(weights),
        "resize": f"centre {model.vit.image_size} of {model.resize_side()}",
        "precision": config.precision,
        "config": as_dict(model),
    }
    numbers = tuple(range(len(shards)))[: config.photos]
    return Scored(shards, images, numbers, model, about)


def _score(work: _Work) -> None:
    """Check those of this rank's images that have a record; score the others."""
    finished = work.journal.finished()
    done = finished.hashes()
    batches = list(_batches(work.scored.numbers))[work.rank.rank :: work.ranks]
    mine = [number for batch in batches for number in batch]
    left = [batch for batch in batches if not set(batch) <= done.keys()]
    images = iter(
        prefetch(work.scored.images.read, [n for b in left for n in b], _DECODERS, _AHEAD)
    )
    with work.requests.saving(work.kept), work.journal.writer(work.rank.rank) as writer:
        _verify(work, done, [number for number in mine if number in done])
        for count, batch in enumerate(left, 1):
            read = [next(images) for _ in batch]
            for record in _classified(work, batch, read):
                if record.photo not in done:
                    writer.add(record)
            work.read.update(batch)
            if work.rank.rank == 0:
                note_progress(len(done) + count * len(batch))
            if work.requests.strongest is not Request.NONE and count < len(left):
                writer.sync()
                everything = len(work.scored.numbers)
                finished_now = len(done) + count * len(batch)
                stop_on_request(work.requests, work.rank, work.journal, finished_now, everything)


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), _BATCH):
        yield numbers[first : first + _BATCH]


@torch.no_grad()
def _classified(
    work: _Work, numbers: Sequence[int], read: Sequence[LabelledImage | CorruptSample]
) -> Iterator[ClassRecord]:
    """Classify a batch; a corrupt image is black in it, so that the others' logits stay."""
    side = work.model.config.vit.image_size
    black = torch.zeros(3, side, side, dtype=torch.uint8)
    image = torch.stack([r.image if isinstance(r, LabelledImage) else black for r in read])
    with _autocast(work):
        shares = probabilities(work.model, image.to(work.model.head.weight.device))
    top = shares.topk(min(max(TOP), shares.shape[1])).indices.tolist()
    for number, sample, classes in zip(numbers, read, top, strict=True):
        if isinstance(sample, CorruptSample):
            yield ClassRecord(number, damage=(sample.kind, name_of(sample), sample.detail))
        else:
            yield ClassRecord(number, sample.label, tuple(classes), sha256=sample.sha256)


def _autocast(work: _Work) -> AbstractContextManager[Any]:
    if work.config.precision == "fp32":
        return nullcontext()
    return torch.autocast(work.model.head.weight.device.type, torch.bfloat16)


def _verify(work: _Work, done: dict[int, str], numbers: Sequence[int]) -> None:
    """Read scored images again, to be sure that they are still the same.

    Raises:
        UserError: An image changed or is missing.
    """
    if changes := changed_images(work.scored.images, done, numbers):
        raise work.journal.refusal(changes)
    work.read.update(numbers)


def _merge(work: _Work, begun: float) -> None:
    """Write the result, if every image has a record and no other rank of this start has done it."""
    out, start = Path(work.config.out), start_name()
    with work.journal.merging():
        finished = work.journal.finished()
        left = len(set(work.scored.numbers) - finished.places.keys())
        if left:
            waiting = counted(left, "photo")
            print(f"rank {work.rank.rank} is done; others have {waiting} left", flush=True)
            return
        hashes = finished.hashes()
        mark = f"{start} {len(hashes)}"
        if work.journal.mark() == mark and out.is_file():
            return
        _verify(work, hashes, [n for n in hashes if n not in work.read])
        notes = RunNotes(
            time.monotonic() - begun, work.ranks, platform.node(), device_name(work.config)
        )
        result = merged(work.scored, finished, notes, work.config)
        if not result.counts["photos"]:
            work.journal.discard()  # records of nothing would refuse the mended command
            raise UserError(_nothing(work.config.shards, result.damaged))
        write_result(result, out)
        work.journal.set_mark(mark)
    Console().print(class_table(result))
    numbers = result.numbers["classification"]["accuracy"]
    photos, damaged = counted(result.counts["photos"], "photo"), len(result.damaged)
    print(
        f"{photos}, {damaged} damaged: top-1 {numbers['top1']:.4f}, top-5 {numbers['top5']:.4f} "
        f"-> {out}",
        flush=True,
    )


def _nothing(shards: str, damaged: Sequence[dict[str, str]]) -> str:
    first = f": {damaged[0]['photo']}: {damaged[0]['kind']}" if damaged else ""
    return f"nothing to score in {shards}: no image has a class that the model knows{first}"
