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

from efficientsam_pl.cli import (
    about,
    compare,
    consolidate,
    embed_teacher,
    evaluate,
    everything,
    figure,
    predict,
    quickstart,
    salient,
    shards,
    training,
)
from efficientsam_pl.cli.parser import Parser
from efficientsam_pl.cluster.launch import INTERRUPTED, note_exit, read_launch, report_to_torchrun
from efficientsam_pl.errors import Interrupted, SavedAndStopped, UserError, one_line

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
    errno.ENAMETOOLONG,
    errno.ELOOP,
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
        parser = build_parser()
        if "_ARGCOMPLETE" in os.environ:
            _complete(parser)
        arguments = _parse(parser, argv)
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
    started = read_launch()
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
    rank, parent = read_launch().rank, os.getppid()
    if rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run may have caught it
        time.sleep(_PATIENCE_S)
        if os.getppid() != parent:
            return MISTAKE  # Lightning's own child, left alone
        told = f"rank {rank} on {socket.gethostname()}: {told}"
    line = f"efficientsam: {told}"
    _tell(line)
    report_to_torchrun(line)
    return MISTAKE


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complete(parser: Parser) -> None:
    """Answers the shell, which has started this process for nothing else, and ends it."""
    import argcomplete

    argcomplete.autocomplete(parser)


def _parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Like parse_args, but key=value may also stand before and between options.

    Outputs that cannot be written are a mistake here already.
    """
    arguments, rest = parser.parse_known_args(argv)
    wrong = [text for text in rest if "overrides" not in arguments or text.startswith("-")]
    if wrong:
        arguments.parser.unknown(wrong)
    if rest:
        arguments.overrides += rest
    arguments.parser.check_outputs(arguments)
    return arguments


def build_parser() -> Parser:
    """All commands with their options."""
    parser = Parser(
        prog="efficientsam", description="Train small Segment Anything models, and use them."
    )
    parser.add_argument("--version", action=about.Version, help="print the version and stop")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quickstart.add(commands)
    shards.add_pack(commands)
    shards.add_check(commands)
    embed_teacher.add(commands)
    for name in training.STAGES:
        training.add(commands, name)
    evaluate.add(commands)
    compare.add(commands)
    consolidate.add(commands)
    predict.add(commands)
    everything.add(commands)
    salient.add(commands)
    figure.add(commands)
    about.add_configs(commands)
    about.add_info(commands)
    return parser
