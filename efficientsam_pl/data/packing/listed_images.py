"""The images of a tar, of tars in a tar, or of a tree, with the classes of their folders."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from efficientsam_pl.data.images.files import is_image_name, is_metadata_name
from efficientsam_pl.data.packing.class_folders import (
    ClassFolders,
    below,
    hidden_part,
    normal_name,
    parent_folder,
    tree_classes,
)
from efficientsam_pl.data.packing.inventory import (
    ARCHIVE,
    HIDDEN_FOLDER,
    REPEATED_NAME,
    Inventory,
    archive_stem,
    file_kind,
)
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.ranges import Range
from efficientsam_pl.storage.tar import FOLDER, Seekable, TarMember, TarScan, scan_headers

_TAR = ".tar"


@dataclass(frozen=True)
class ListedImage:
    """An image of a source: its name, the folder that makes the name unique, and its class."""

    name: str
    folder: str
    where: Range
    label: int | None

    @property
    def stem(self) -> str:
        """Name without folders and suffix."""
        return PurePosixPath(self.name).stem


def list_tar(source: str, file: Seekable) -> tuple[list[ListedImage], Inventory]:
    """List the images of an opened tar, where a tar inside it stands for a folder.

    Raises:
        UserError: The tar, or one inside it, is corrupt.
    """
    tree = _TarTree(source)
    outer = scan_headers(file)
    tars = tree.add(outer, "", nested=True)
    for tar in tars:
        inner = scan_headers(file, tar.offset, tar.offset + tar.size)
        tree.add(inner, f"{archive_stem(normal_name(tar.name))}/", tar.name)
    classes = tree_classes(tree.images, tree.folders, tree.archives)
    ranges = sorted(tree.images.items())
    return labelled_images(ranges, classes, tree.inventory), tree.inventory


def labelled_images(
    ranges: Iterable[tuple[str, Range]], classes: ClassFolders, inventory: Inventory
) -> list[ListedImage]:
    """Give images, named by their paths in the tree, the classes of their folders.

    The inventory gets the classes, unless no image has one.
    """
    listed = []
    for path, where in ranges:
        name = below(path, classes.root)
        folder = parent_folder(name)
        listed.append(ListedImage(name, folder, where, classes.label(folder)))
    labels = {image.label for image in listed}
    if labels - {None}:
        inventory.classes = classes.names
        inventory.empty = [n for number, n in enumerate(classes.names) if number not in labels]
        inventory.unlabelled = sum(image.label is None for image in listed)
    return listed


@dataclass
class _TarTree:
    """The tree that a tar and the tars inside it would be unpacked to."""

    source: str
    images: dict[str, Range] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    archives: set[str] = field(default_factory=set)
    inventory: Inventory = field(default_factory=Inventory)
    _hidden: set[str] = field(default_factory=set)

    def add(
        self, scan: TarScan, prefix: str, inside: str = "", nested: bool = False
    ) -> list[TarMember]:
        """Add the members of a tar; return the tars among them if these are to be listed too."""
        if scan.faults:
            place = f"{self.source}: {inside}" if inside else self.source
            fault = scan.faults[0]
            raise UserError(f"--source: {place} is corrupt: {fault}; download it again")
        tars, compressed = [], []
        for member in scan.members:
            name = prefix + normal_name(member.name)
            self.folders.add(parent_folder(name))
            if self._is_hidden(name):
                continue
            if is_image_name(name):
                self._add_image(name, Range(self.source, member.offset, member.size))
            elif nested and name.lower().endswith(_TAR) and not is_metadata_name(name):
                tars.append(member)
                self.archives.add(archive_stem(name))
            else:
                self.inventory.leave_out(file_kind(name), name)
                compressed += [name] if file_kind(name) == ARCHIVE else []
        self._add_others(scan, prefix)
        if tars:  # the classes of these would be lost, and all later ones renumbered
            self.archives.update(map(archive_stem, compressed))
        return tars

    def _add_image(self, name: str, where: Range) -> None:
        if name in self.images:  # the later member counts, as in any tar
            self.inventory.leave_out(REPEATED_NAME, name)
        self.images[name] = where

    def _add_others(self, scan: TarScan, prefix: str) -> None:
        for entry in scan.others:
            name = prefix + normal_name(entry.name)
            if entry.kind == FOLDER:
                self.folders.add(name)
                self._is_hidden(f"{name}/")
            elif not self._is_hidden(name):
                self.inventory.leave_out(entry.kind, name)

    def _is_hidden(self, name: str) -> bool:
        """Return whether a file is in a hidden folder, which is counted once."""
        folder = hidden_part(name)
        if folder is not None and folder not in self._hidden:
            self._hidden.add(folder)
            self.inventory.leave_out(HIDDEN_FOLDER, folder)
        return folder is not None
