"""The console command: arguments are parsed and configs read before torch is imported."""

import argparse
import errno
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from efficientsam_pl import config as configs
from efficientsam_pl.arguments import (
    compare,
    embed_teacher,
    everything,
    figure,
    predict,
    quickstart,
    salient,
    shards,
    stages,
)
from efficientsam_pl.errors import Interrupted, SavedAndStopped, UserError, one_line
from efficientsam_pl.launch import INTERRUPTED, launch, note_exit

DONE, MISTAKE = 0, 2
_MENDABLE = (  # what the user's disk or folder refuses
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)
_PATIENCE_S = 10.0  # of a rank that has something to tell beside rank 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 done, 2 a user's mistake, told in one line on stderr, 75 a run that has saved and stopped
        on request, 130 Ctrl-C, 1 what a command found wrong. A fault of ours is a traceback and
        exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parse(build_parser(), argv)
        code = arguments.run(arguments)
    except SavedAndStopped as stopped:
        return _stopped(str(stopped), stopped.code)
    except UserError as error:
        return _mistake(one_line(error))
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _mistake(f"{error.strerror}{where}")
    except (KeyboardInterrupt, Interrupted):
        return _stopped("interrupted", INTERRUPTED)
    return DONE if code is None else int(code)


def _stopped(told: str, code: int) -> int:
    note_exit(code)
    started = launch()
    if started.rank == 0:
        _tell(f"efficientsam: {told}")
    elif started.kind == "person":
        return DONE  # Lightning kills the first process, whose code counts, if a child's is not 0
    return code


def _mistake(told: str) -> int:
    """All ranks may have found the same, so rank 0 tells it and its end ends the others.

    One that lives on has found what rank 0 has not, and tells it.
    """
    note_exit(MISTAKE)
    rank, parent = launch().rank, os.getppid()
    if rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run may have caught it
        time.sleep(_PATIENCE_S)
        if os.getppid() != parent:
            return MISTAKE  # Lightning's own child, left alone
        told = f"rank {rank} on {socket.gethostname()}: {told}"
    _tell(f"efficientsam: {told}")
    return MISTAKE


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Like parse_args, but key=value may also stand before and between options."""
    arguments, rest = parser.parse_known_args(argv)
    wrong = [text for text in rest if "overrides" not in arguments or text.startswith("-")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        arguments.overrides += rest
    return arguments


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage text before it."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = _Parser(
        prog="efficientsam", description="Train small Segment Anything models, and use them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quickstart.add(commands)
    shards.add_pack(commands)
    shards.add_check(commands)
    embed_teacher.add(commands)
    stages.add(commands, "pretrain", configs.PretrainConfig, "SAMI on shards of photos")
    stages.add(commands, "finetune", configs.FinetuneConfig, "prompts to masks on shards")
    stages.add(
        commands, "evaluate", configs.EvaluateConfig, "mIoU by named protocols and AP with boxes"
    )
    compare.add(commands)
    stages.add_consolidate(commands)
    predict.add(commands)
    everything.add(commands)
    salient.add(commands)
    figure.add(commands)
    return parser
