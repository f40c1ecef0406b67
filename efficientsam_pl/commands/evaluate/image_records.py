"""Score images batch by batch on any number of ranks: shared by the evaluations of whole images.

Ranks share batches of images by their places and meet in a folder of files; a killed evaluation
continues where it stopped, and the rank that ends last writes the result. A batch holds the same
images on any number of ranks, so that every number is the same to the last digit.
"""

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from efficientsam_pl.cluster.launch import Launch, launch, note_progress
from efficientsam_pl.cluster.signals import Request, StopRequests, catch_signals
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.ranks import device_name, start_name, stop_on_request
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.commands.evaluate.verification import ReadAgain, changed_images
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.data.datasets.image_sources import prefetch
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.journal import Finished, JournalRecord, ResultJournal
from efficientsam_pl.evaluation.results.result_file import Result, write_result
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.retries import SourceLostError, set_store_patience

Loaded = TypeVar("Loaded")
R = TypeVar("R", bound=JournalRecord)
_DECODERS = 2  # threads that decode
_PROMPTS_ALONE = ("protocols", "detector", "prompts_at_once", "seed", "baseline")


class ImageScoring(ABC, Generic[Loaded, R]):
    """A model, the images that it is scored on, and their records.

    Attributes:
        numbers: The images, in a fixed order.
        photos: Reads their stored bytes again.
        batch: Images that are scored together; part of what the last digits depend on.
    """

    numbers: Sequence[int]
    photos: ReadAgain
    batch: int

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Collect what decides the numbers: records made with other settings are not reused."""

    @abstractmethod
    def parse(self, line: str) -> R:
        """Parse a record's line; raises RecordError for any other."""

    @abstractmethod
    def read(self, number: int) -> Loaded | CorruptSample:
        """Read an image; runs in several threads."""

    @abstractmethod
    def score(self, numbers: Sequence[int], read: Sequence[Loaded | CorruptSample]) -> Iterator[R]:
        """Score a batch; yield a record for each image in it."""

    @abstractmethod
    def result(self, finished: Finished[R], notes: RunNotes) -> Result:
        """Merge the records of all images, in the order of their numbers."""

    @abstractmethod
    def table(self, result: Result) -> Table:
        """Tabulate a result."""

    @abstractmethod
    def summary(self, result: Result) -> str:
        """Format the numbers that matter most."""

    @abstractmethod
    def nothing(self) -> str:
        """Say why no image could be scored, without the first one's fault."""


@dataclass(frozen=True)
class _Work(Generic[Loaded, R]):
    """The work of a rank."""

    config: EvaluateConfig
    scoring: ImageScoring[Loaded, R]
    journal: ResultJournal[R]
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


def refuse_prompt_keys(config: EvaluateConfig, model: str, also: Sequence[str] = ()) -> None:
    """Refuse keys that have no effect with a model that is given images alone.

    Args:
        config: Of the command.
        model: What the model is, for the message: "a classifier".
        also: Further keys without effect.

    Raises:
        ConfigError: One of the keys is set.
    """
    if config.model.name is not None:
        raise ConfigError(f"model.name={config.model.name} has no effect with {model}'s file")
    plain = EvaluateConfig()
    for key in (*_PROMPTS_ALONE, *also):
        value = getattr(config, key)
        if value != getattr(plain, key):
            shown = f"[{','.join(value)}]" if isinstance(value, tuple) else value
            raise ConfigError(f"{key}={shown} has no effect with {model}")
    if config.plots:
        raise ConfigError(f"plots=true has no effect with {model}")


def score_images(config: EvaluateConfig, begin: Callable[[], ImageScoring[Loaded, R]]) -> None:
    """Score this rank's images; write the result if no image is left.

    Args:
        config: Of the command.
        begin: Loads the model and opens the set.

    Raises:
        UserError: A file cannot be used, the folder holds another evaluation's records, or no image
            can be scored.
        SavedAndStopped: On a request to stop, or where a store stays away; the same command
            continues.
    """
    requests, begun = catch_signals(), time.monotonic()
    set_store_patience(config.store_patience_s)
    try:
        scoring = begin()
        journal = ResultJournal(Path(config.out).with_suffix(".parts"), scoring.parse)
        journal.begin(scoring.settings(), start_name(), config.fresh)
        work = _Work(config, scoring, journal, launch(), requests)
        try:
            _score(work)
            _merge(work, begun)
        except SourceLostError as error:
            kept = f"{error}; {work.kept()}; the same command continues"
            raise SourceLostError(kept) from error
    finally:
        requests.restore_handlers()


def _score(work: _Work[Loaded, R]) -> None:
    """Check those of this rank's images that have a record; score the others."""
    scoring = work.scoring
    done = work.journal.finished().hashes()
    batches = list(_batches(scoring.numbers, scoring.batch))[work.rank.rank :: work.ranks]
    mine = [number for batch in batches for number in batch]
    left = [batch for batch in batches if not set(batch) <= done.keys()]
    places = [number for batch in left for number in batch]
    images = iter(prefetch(scoring.read, places, _DECODERS, 2 * scoring.batch))
    with work.requests.saving(work.kept), work.journal.writer(work.rank.rank) as writer:
        _verify(work, done, [number for number in mine if number in done])
        for count, batch in enumerate(left, 1):
            for record in scoring.score(batch, [next(images) for _ in batch]):
                if record.photo not in done:
                    writer.add(record)
            work.read.update(batch)
            finished = len(done) + count * len(batch)
            if work.rank.rank == 0:
                note_progress(finished)
            if work.requests.strongest is not Request.NONE and count < len(left):
                writer.sync()
                images_in_all = len(scoring.numbers)
                stop_on_request(work.requests, work.rank, work.journal, finished, images_in_all)


def _batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def _verify(work: _Work[Loaded, R], done: dict[int, str], numbers: Sequence[int]) -> None:
    """Read scored images again, to be sure that they are still the same.

    Raises:
        UserError: An image changed or is missing.
    """
    if changes := changed_images(work.scoring.photos, done, numbers):
        raise work.journal.refusal(changes)
    work.read.update(numbers)


def _merge(work: _Work[Loaded, R], begun: float) -> None:
    """Write the result, if every image has a record and no other rank of this start has done it."""
    scoring, out, start = work.scoring, Path(work.config.out), start_name()
    with work.journal.merging():
        finished = work.journal.finished()
        left = len(set(scoring.numbers) - finished.places.keys())
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
        result = scoring.result(finished, notes)
        if not result.counts["photos"]:
            work.journal.discard()  # records of nothing would refuse the mended command
            first = result.damaged[0] if result.damaged else None
            fault = "" if first is None else f": {first['photo']}: {first['kind']}"
            raise UserError(f"{scoring.nothing()}{fault}")
        write_result(result, out)
        work.journal.set_mark(mark)
    Console().print(scoring.table(result))
    photos, damaged = counted(result.counts["photos"], "photo"), len(result.damaged)
    print(f"{photos}, {damaged} damaged: {scoring.summary(result)} -> {out}", flush=True)
