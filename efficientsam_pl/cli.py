"""The console command: arguments are parsed and configs read before torch is imported."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efficientsam_pl import config as configs
from efficientsam_pl.errors import UserError, one_line

DONE, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
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
    _add_quickstart(commands)
    _add_pack(commands)
    _add_check_shards(commands)
    _add_config_command(commands, "pretrain", configs.PretrainConfig, "SAMI on shards of photos")
    _add_config_command(commands, "finetune", configs.FinetuneConfig, "prompts to masks on shards")
    _add_config_command(
        commands, "evaluate", configs.EvaluateConfig, "box and click mIoU and mask AP on shards"
    )
    _add_consolidate(commands)
    _add_predict(commands)
    return parser


def _add_quickstart(commands: Any) -> None:
    parser = _command(commands, "quickstart", "both stages, small, on photos at hand")
    parser.add_argument("--out", type=Path, default=Path("quickstart_out"), metavar="DIR")
    parser.add_argument("--seed", type=_natural, default=0, metavar="N")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--coco",
        nargs=2,
        type=Path,
        metavar=("ANNOTATIONS", "IMAGES"),
        help="a COCO-format set instead of scikit-image's photos",
    )
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="your own photos, masks by Felzenszwalb's method"
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="a released SAM checkpoint instead of a random teacher"
    )
    _config_options(parser)
    parser.set_defaults(run=_quickstart)


def _add_pack(commands: Any) -> None:
    pack = _command(commands, "pack", "photos and masks to WebDataset shards")
    sources = pack.add_subparsers(required=True, metavar="SOURCE")
    sa1b = _command(sources, "sa1b", "SA-1B's tars again: smaller, or byte for byte")
    sa1b.add_argument(
        "--source", required=True, metavar="'PATTERN'", help="such as '/data/sa_*.tar'"
    )
    _pack_options(sa1b, _pack_sa1b)
    imagenet = _command(sources, "imagenet", "plain photos with their classes")
    imagenet.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help="ILSVRC2012_img_train.tar, a folder a class, or a text file with a path and, if "
        "known, a class number on each line",
    )
    _pack_options(imagenet, _pack_imagenet)
    coco = _command(sources, "coco", "a COCO-format set: polygons, run-lengths, crowds")
    coco.add_argument("--annotations", required=True, metavar="FILE")
    coco.add_argument("--images", required=True, metavar="DIR")
    _pack_options(coco, _pack_coco)


def _pack_options(parser: argparse.ArgumentParser, run: Callable[..., None]) -> None:
    parser.epilog = "Started again after an interruption, it writes the shards that are missing."
    parser.add_argument("--out", required=True, metavar="DIR", help="local, or s3:// and the like")
    parser.add_argument(
        "--long-side",
        type=_positive,
        metavar="N",
        help="photos and masks shrunk until the longer side has N pixels, JPEG quality 92; "
        "without it bytes are kept",
    )
    parser.add_argument(
        "--samples-per-shard", type=_positive, default=1000, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--workers", type=_natural, default=_cores(), metavar="N", help="processes (%(default)s)"
    )
    parser.add_argument(
        "--array-index",
        type=_natural,
        metavar="I",
        help="this job of an array (SLURM's by default)",
    )
    parser.add_argument("--array-count", type=_positive, metavar="N", help="jobs of the array")
    parser.set_defaults(run=run)


def _add_check_shards(commands: Any) -> None:
    parser = _command(
        commands,
        "check-shards",
        "whether every sample of a set can be used",
        "Exit code: 0 all is good, 1 something is bad, 2 a mistake of yours.",
    )
    parser.add_argument("pattern", metavar="'PATTERN'", help="such as 'shards/*.tar'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a report with all that is bad")
    parser.add_argument("--index-dir", metavar="DIR", help="of indexes that lie apart")
    parser.add_argument(
        "--workers", type=_natural, default=_cores(), metavar="N", help="processes (%(default)s)"
    )
    parser.set_defaults(run=_check_shards)


def _add_config_command(commands: Any, name: str, root: type[Any], help_text: str) -> None:
    parser = _command(commands, name, help_text)
    _config_options(parser)

    def run(arguments: argparse.Namespace) -> None:
        loaded = configs.load(root, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(configs.dump(loaded), end="")  # noqa: T201
            return
        configs.require(loaded)
        import importlib

        importlib.import_module(f"efficientsam_pl.commands.{name}").run(loaded)

    parser.set_defaults(run=run)


def _add_consolidate(commands: Any) -> None:
    parser = _command(commands, "consolidate", "a checkpoint, or a run's newest, to one file")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.set_defaults(run=_consolidate)


def _add_predict(commands: Any) -> None:
    parser = _command(commands, "predict", "masks of one photo from points and boxes")
    parser.add_argument("--weights", required=True, metavar="FILE", help="released or our own")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="efficient_sam_ti, efficient_sam_s, sam_vit_b, sam_vit_l, sam_vit_h or a config "
        "file; may be left out for files of `efficientsam consolidate`",
    )
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="X,Y[,0|1]",
        help="a click, 1 (default) on the object, 0 beside it; repeated points are one prompt",
    )
    parser.add_argument(
        "--box",
        type=_numbers("X0,Y0,X1,Y1", 4),
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="each box is a prompt of its own unless points are given with it",
    )
    parser.add_argument("--mask-input", type=Path, metavar="FILE.npy", help="[256, 256] logits")
    parser.add_argument("--single-mask", action="store_true", help="the single mask, token 0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="masks, logits and IoU as arrays")
    parser.set_defaults(run=_predict)


def _command(
    commands: Any, name: str, help_text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    description = help_text[0].upper() + help_text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=description, epilog=epilog
    )
    return parser


def _config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        dest="config",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file, or a shipped one such as finetune/ti; repeatable, later ones win",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole config and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the files")


def _quickstart(arguments: argparse.Namespace) -> None:
    loaded = configs.load(
        configs.QuickstartConfig, ["quickstart", *arguments.config], arguments.overrides
    )
    if arguments.print_config:
        print(configs.dump(loaded), end="")  # noqa: T201
        return
    for name in ("coco", "images", "teacher"):
        value = getattr(arguments, name)
        for path in [] if value is None else value if isinstance(value, list) else [value]:
            if not Path(path).exists():
                raise UserError(f"--{name}: no such file or folder: {path}")
    from efficientsam_pl.commands.quickstart import job

    job.run(
        job.QuickstartOptions(
            out=arguments.out,
            seed=arguments.seed,
            coco=None if arguments.coco is None else tuple(arguments.coco),
            images=arguments.images,
            teacher=arguments.teacher,
        ),
        loaded,
    )


def _pack_sa1b(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import pack

    pack.run_sa1b(arguments.source, _told_of_pack(arguments))


def _pack_imagenet(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import pack

    pack.run_imagenet(arguments.source, _told_of_pack(arguments))


def _pack_coco(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import pack

    pack.run_coco(arguments.annotations, arguments.images, _told_of_pack(arguments))


def _told_of_pack(arguments: argparse.Namespace) -> Any:
    from efficientsam_pl.commands import pack
    from efficientsam_pl.data.packing.job import ArrayShare

    index, count = arguments.array_index, arguments.array_count
    if (index is None) != (count is None):
        raise UserError("--array-index and --array-count go together")
    return pack.PackOptions(
        out=arguments.out.rstrip("/"),
        long_side=arguments.long_side,
        samples_per_shard=arguments.samples_per_shard,
        share=pack.slurm_share() if index is None else ArrayShare(index, count),
        workers=arguments.workers,
    )


def _check_shards(arguments: argparse.Namespace) -> int:
    from efficientsam_pl.commands import check_shards

    return (
        DONE
        if check_shards.run(
            arguments.pattern, arguments.json, arguments.index_dir, arguments.workers
        )
        else FAULT
    )


def _consolidate(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import consolidate

    consolidate.run(arguments.checkpoint, arguments.out)


def _predict(arguments: argparse.Namespace) -> None:
    if not arguments.point and not arguments.box and arguments.mask_input is None:
        raise UserError("predict: no prompt; give --point X,Y or --box X0,Y0,X1,Y1")
    for name in ("weights", "image"):
        path = Path(getattr(arguments, name))
        if not path.is_file():
            raise UserError(f"--{name}: no such file: {path}")
    if arguments.model is not None:
        configs.segmenter_config(arguments.model)
    from efficientsam_pl.commands import predict

    predict.run(
        predict.PredictOptions(
            weights=arguments.weights,
            model=arguments.model,
            image=arguments.image,
            points=tuple(arguments.point),
            boxes=tuple(arguments.box),
            mask_input=arguments.mask_input,
            single_mask=arguments.single_mask,
            out=arguments.out,
            npz=arguments.npz,
        )
    )


def _numbers(form: str, *counts: int) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) not in counts:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return values

    return parse


def _point(text: str) -> tuple[float, float, int]:
    x, y, *label = _numbers("X,Y[,0|1]", 2, 3)(text)
    if label and label[0] not in (0, 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the label must be 0 or 1")
    return x, y, int(label[0]) if label else 1


def _cores() -> int:
    """Processors that this process may use; a scheduler may have given it fewer than there are."""
    return len(os.sched_getaffinity(0))


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number in [0, 2**63)")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
