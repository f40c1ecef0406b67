"""The console command: arguments are parsed and configs read before torch is imported."""

import argparse
import errno
import io
import sys
from collections.abc import Sequence
from typing import Any

from efficientsam_pl import config as configs
from efficientsam_pl.arguments import embed_teacher, predict, quickstart, shards, stages
from efficientsam_pl.errors import UserError, one_line

DONE, MISTAKE, INTERRUPTED = 0, 2, 130
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 done, 2 a user's mistake, told in one line on stderr, 1 what a command found wrong. A
        fault of ours is a traceback and exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parse(build_parser(), argv)
        code = arguments.run(arguments)
    except UserError as error:
        print(f"efficientsam: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return MISTAKE
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"efficientsam: {error.strerror}{where}", file=sys.stderr)  # noqa: T201
        return MISTAKE
    except KeyboardInterrupt:
        print("efficientsam: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return DONE if code is None else int(code)


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
        commands, "evaluate", configs.EvaluateConfig, "box and click mIoU and mask AP on shards"
    )
    stages.add_consolidate(commands)
    predict.add(commands)
    return parser
