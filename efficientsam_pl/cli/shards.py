"""`efficientsam pack` and `efficientsam check-shards`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientsam_pl.cli.argument_types import (
    array_options,
    array_share,
    command,
    cores,
    natural,
    positive,
    store_options,
)
from efficientsam_pl.cli.parser import PATTERN, Parser, path_text
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.inputs import check_matches

_BAD = 1  # exit code
_KEYS = (
    "Keys are file names without folder and suffix, with _ for each dot; where two are equal, all "
    "begin with their folder, and a key that is still taken gets a number."
)


def add_pack(commands: Any) -> None:
    """Add the `pack` command with its sources."""
    pack = command(commands, "pack", "photos and masks to WebDataset shards")
    sources = pack.add_subparsers(required=True, metavar="SOURCE")
    sa1b = command(sources, "sa1b", "SA-1B's tars again: smaller, or byte for byte")
    sa1b.add_argument(
        "--source",
        required=True,
        type=path_text,
        metavar=PATTERN,
        help="Meta's tars, such as '/data/sa_*.tar'",
    )
    _pack_options(sa1b, _pack_sa1b)
    imagenet = command(sources, "imagenet", "plain photos with their classes")
    imagenet.add_argument(
        "--source",
        required=True,
        type=path_text,
        metavar="PATH",
        help="ILSVRC2012_img_train.tar, a folder a class or a tar of it, or a text file with a "
        "path and, if known, a class number on each line",
    )
    _pack_options(imagenet, _pack_imagenet)
    imagenet.epilog = f"{_KEYS} {imagenet.epilog}"
    coco = command(sources, "coco", "a COCO-format set: polygons, run-lengths, crowds")
    coco.add_argument(
        "--annotations", required=True, type=path_text, metavar="FILE", help="COCO's JSON"
    )
    coco.add_argument(
        "--images",
        required=True,
        type=path_text,
        metavar="DIR",
        help="the folder that its file names are in",
    )
    coco.add_argument(
        "--crowds",
        choices=("ignore", "objects"),
        default="ignore",
        help="objects: annotations with iscrowd are objects too, as CVAT writes brush masks "
        "(%(default)s)",
    )
    coco.add_argument(
        "--exif-orientation",
        choices=("apply", "ignore"),
        default="apply",
        help="ignore: the set was annotated on pixels as stored, which a viewer shows turned by "
        "their EXIF orientation (%(default)s)",
    )
    _pack_options(coco, _pack_coco)
    _add_ade20k(sources)


def _add_ade20k(sources: Any) -> None:
    ade20k = command(sources, "ade20k", "photos with a label map each: ADE20K, CamVid, your own")
    folders = (
        ("--source", "DIR", "ADEChallengeData2016 as its site gives it, with --split"),
        ("--images", "DIR", "photos, in subfolders too; with --labels and --classes"),
        (
            "--labels",
            "DIR",
            "grey or palette PNGs under the photos' names; a value or palette index is a class",
        ),
        (
            "--classes",
            "FILE",
            "a class name a line, in the order of the values; or ADE20K's objectInfo150.txt, where "
            "values begin with 1 and 0 is ignored",
        ),
    )
    for option, metavar, text in folders:
        ade20k.add_argument(option, type=path_text, metavar=metavar, help=text)
    ade20k.add_argument("--split", choices=("training", "validation"), help="part of --source")
    ade20k.add_argument(
        "--first-class", type=natural, metavar="N", help="value of the first class (0)"
    )
    ade20k.add_argument(
        "--ignored",
        type=natural,
        action="append",
        default=[],
        metavar="N",
        help="a value that is no class, such as 11 of CamVid; repeatable (255 is one always)",
    )
    ade20k.add_argument(
        "--exif-orientation",
        choices=("apply", "ignore"),
        default="apply",
        help="ignore: label maps belong to the pixels as stored where their size fits both frames "
        "(%(default)s)",
    )
    _pack_options(ade20k, _pack_ade20k)
    ade20k.epilog = f"{_KEYS} {ade20k.epilog}"


def add_check(commands: Any) -> None:
    """Add the `check-shards` command."""
    parser = command(
        commands,
        "check-shards",
        "whether every sample of a set can be used",
        "Exit code: 0 all is good, 1 something is bad, 2 a mistake of yours.",
    )
    parser.add_argument(
        "pattern", type=path_text, metavar=PATTERN, help="the shards, such as 'shards/*.tar'"
    )
    parser.add_output(
        "--json",
        kind="file",
        type=path_text,
        metavar="FILE",
        help="a report with all that is bad; local, or s3:// and the like",
    )
    parser.add_argument(
        "--index-dir", type=path_text, metavar="DIR", help="of indexes that lie apart"
    )
    parser.add_argument(
        "--workers", type=natural, default=cores(), metavar="N", help="processes (%(default)s)"
    )
    store_options(parser)
    parser.set_defaults(run=_check_shards)


def _pack_options(parser: Parser, run: Callable[..., None]) -> None:
    parser.epilog = (
        "Started again after an interruption, it writes the shards that are missing, and packs "
        "those again whose sources were broken and are mended now."
    )
    parser.add_output(
        "--out",
        kind="folder",
        type=path_text,
        required=True,
        metavar="DIR",
        help="where the shards are written: local, or s3:// and the like",
    )
    parser.add_argument(
        "--long-side",
        type=positive,
        metavar="N",
        help="photos and masks shrunk until the longer side has N pixels, JPEG quality 92; "
        "without it bytes are kept",
    )
    parser.add_argument(
        "--samples-per-shard",
        type=positive,
        default=1000,
        metavar="N",
        help="at most (%(default)s)",
    )
    parser.add_argument(
        "--workers", type=natural, default=cores(), metavar="N", help="processes (%(default)s)"
    )
    store_options(parser)
    parser.add_argument(
        "--changed",
        choices=("repack", "refuse"),
        default="refuse",
        help="shards whose sources changed after being packed: packed again, or an error that "
        "names a source (%(default)s)",
    )
    parser.add_argument(
        "--redo",
        type=path_text,
        action="append",
        default=[],
        metavar="SHARD",
        help="pack this shard of DIR again, such as coco-000000; repeatable",
    )
    array_options(parser)
    parser.set_defaults(run=run)


def _pack_sa1b(arguments: argparse.Namespace) -> None:
    check_matches(arguments.source, "--source: no tar")
    from efficientsam_pl.commands import pack

    pack.run_sa1b(arguments.source, _pack_config(arguments))


def _pack_imagenet(arguments: argparse.Namespace) -> None:
    if "://" not in arguments.source and not Path(arguments.source).exists():
        raise UserError(f"--source: no such file or folder: {arguments.source}")
    from efficientsam_pl.commands import pack

    pack.run_imagenet(arguments.source, _pack_config(arguments))


def _pack_coco(arguments: argparse.Namespace) -> None:
    for named in (arguments.annotations, arguments.images):
        if "://" not in named and not Path(named).exists():
            raise UserError(f"no such file or folder: {named}")
    from efficientsam_pl.commands import pack

    options = _pack_config(arguments)
    pack.run_coco(
        arguments.annotations,
        arguments.images,
        options,
        arguments.exif_orientation,
        arguments.crowds,
    )


def _pack_ade20k(arguments: argparse.Namespace) -> None:
    images, labels, classes = _label_map_folders(arguments)
    for named in (images, labels, classes):
        if "://" not in named and not Path(named).exists():
            raise UserError(f"no such file or folder: {named}")
    from efficientsam_pl.commands import pack

    folders = pack.LabelMapFolders(
        images,
        labels,
        classes,
        arguments.first_class,
        tuple(arguments.ignored),
        arguments.exif_orientation,
    )
    pack.run_label_maps(folders, _pack_config(arguments))


def _label_map_folders(arguments: argparse.Namespace) -> tuple[str, str, str]:
    """Return the folders of images and of label maps, and the class list."""
    pair = {f"--{name}": getattr(arguments, name) for name in ("images", "labels", "classes")}
    given = [option for option, value in pair.items() if value is not None]
    if arguments.source is None:
        missing = [option for option in pair if option not in given]
        if missing:
            raise UserError(
                f"{missing[0]} is missing: give --images, --labels and --classes, or --source and "
                "--split of ADE20K"
            )
        if arguments.split is not None:
            raise UserError("--split has no effect without --source")
        return pair["--images"], pair["--labels"], pair["--classes"]
    if given:
        raise UserError(f"{given[0]} has no effect with --source, which names ADE20K's folders")
    if arguments.split is None:
        raise UserError("--split is missing: training or validation of --source")
    root, split = arguments.source.rstrip("/"), arguments.split
    return f"{root}/images/{split}", f"{root}/annotations/{split}", f"{root}/objectInfo150.txt"


def _pack_config(arguments: argparse.Namespace) -> Any:
    from efficientsam_pl.commands import pack
    from efficientsam_pl.data.packing.runner import PackAgain

    return pack.PackOptions(
        out=arguments.out.rstrip("/"),
        long_side=arguments.long_side,
        samples_per_shard=arguments.samples_per_shard,
        share=array_share(arguments),
        workers=arguments.workers,
        again=PackAgain(
            arguments.changed, frozenset(name.removesuffix(".tar") for name in arguments.redo)
        ),
    )


def _check_shards(arguments: argparse.Namespace) -> int:
    check_matches(arguments.pattern)
    from efficientsam_pl.commands import check_shards

    good = check_shards.run(
        arguments.pattern, arguments.json, arguments.index_dir, arguments.workers
    )
    return 0 if good else _BAD
