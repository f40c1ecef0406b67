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
    check_coco,
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
from efficientsam_pl.cluster.launch import (
    INTERRUPTED,
    STOPPED,
    note_exit,
    read_launch,
    report_to_torchrun,
)
from efficientsam_pl.errors import Interrupted, SavedAndStopped, UserError, one_line
from efficientsam_pl.storage.retries import SourceLostError

DONE, MISTAKE = 0, 2
_USER_ERRNOS = (  # problems of the user's disk or folder
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
    errno.EMFILE,  # ulimit -n
    errno.ENFILE,
)
_RANK_0_GRACE_S = 10.0  # other ranks wait for rank 0 to report first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 0 success, 1 a failed check, 2 a user's mistake, reported in one line on stderr,
        75 a run that saved and stopped on request, or whose store stayed away, 130 Ctrl-C. An
        internal error raises, which prints a traceback and exits with 1.
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
        return _stopped(str(stopped), stopped.code, stopped.requeue)
    except SourceLostError as error:
        return _failed(one_line(error), STOPPED, requeue=True)
    except UserError as error:
        return _failed(one_line(error), MISTAKE)
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _failed(f"{error.strerror}{where}", MISTAKE)
    except (KeyboardInterrupt, Interrupted):
        return _stopped("interrupted", INTERRUPTED)
    return DONE if code is None else int(code)


def _stopped(message: str, code: int, requeue: bool = False) -> int:
    note_exit(code, requeue)
    started = read_launch()
    if started.rank == 0:
        _print_error(f"efficientsam: {message}")
    elif started.kind == "person":
        return DONE  # Lightning kills the first process, whose code counts, if a child's is not 0
    return code


def _failed(message: str, code: int, requeue: bool = False) -> int:
    """Report a failure in one line: rank 0 at once, other ranks only if they outlive rank 0.

    All ranks usually fail alike, and the exit of rank 0 terminates the others. A rank that is
    still running after the grace period has failed where rank 0 has not.
    """
    note_exit(code, requeue)
    rank, parent = read_launch().rank, os.getppid()
    if rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run may have caught it
        time.sleep(_RANK_0_GRACE_S)
        if os.getppid() != parent:
            return code  # Lightning's own child, left alone
        message = f"rank {rank} on {socket.gethostname()}: {message}"
    line = f"efficientsam: {message}"
    _print_error(line)
    report_to_torchrun(line)
    return code


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complete(parser: Parser) -> None:
    """Print completions to the shell, which started this process only for them, and exit."""
    import argcomplete

    argcomplete.autocomplete(parser)


def _parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, allowing key=value before and between options.

    Outputs are checked here, so that an unwritable one fails early.
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
    """Build the parser with all commands and their options."""
    parser = Parser(
        prog="efficientsam", description="Train small Segment Anything models, and use them."
    )
    parser.add_argument("--version", action=about.Version, help="print the version and stop")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quickstart.add(commands)
    shards.add_pack(commands)
    shards.add_check(commands)
    check_coco.add(commands)
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
