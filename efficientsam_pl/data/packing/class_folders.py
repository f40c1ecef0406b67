"""Class folders of a tree of images, as torchvision's ImageFolder numbers them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from efficientsam_pl.data.images.files import is_hidden_folder


@dataclass(frozen=True)
class ClassFolders:
    """The folder that the classes are in, "" for the tree itself, and the classes in order."""

    root: str
    names: tuple[str, ...]

    def label(self, folder: str) -> int | None:
        """Return the number of the class that a folder below the root belongs to."""
        return self._numbers.get(folder.partition("/")[0]) if folder else None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def numbered(names: Iterable[str], root: str = "") -> ClassFolders:
    """Assign numbers to folders by their sorted names; empty and hidden ones keep their numbers."""
    return ClassFolders(root, tuple(sorted(set(names))))


def tree_classes(
    images: Iterable[str], folders: Iterable[str], archives: Collection[str] = ()
) -> ClassFolders:
    """Find the classes of a tree whose outer folders, such as `data/train/`, may be packed too.

    A folder that is alone is an outer one unless images are directly in it. Images in a single
    folder without an outer one have no class.

    Args:
        images: Paths of the images in the tree.
        folders: Paths of all folders, empty ones included.
        archives: Folders that stand for an archive; these are classes, never outer folders.
    """
    direct = {parent_folder(name) for name in images}
    children: dict[str, set[str]] = {}
    for folder in {*direct, *folders, *archives}:
        for path in (folder, *map(str, PurePosixPath(folder).parents)) if folder else ():
            if path not in {"", "."}:
                children.setdefault(parent_folder(path), set()).add(path.rpartition("/")[2])
    root = ""
    while True:
        names = children.get(root, set())
        visible = [name for name in names if not is_hidden_folder(name)]
        if len(visible) != 1 or root in direct:
            return numbered(names, root)
        only = f"{root}/{visible[0]}" if root else visible[0]
        if only in archives or (only in direct and root):
            return numbered(names, root)
        if only in direct:
            return numbered(())
        root = only


def normal_name(name: str) -> str:
    """Return a tar member's path without `./`, leading and trailing slashes."""
    return "/".join(part for part in name.split("/") if part not in {"", "."})


def parent_folder(path: str) -> str:
    """Return the folder of a path; "" for a file of the tree itself."""
    return path.rpartition("/")[0]


def below(path: str, root: str) -> str:
    """Return a path relative to the root; unchanged where it is outside of it."""
    return path[len(root) + 1 :] if root and path.startswith(f"{root}/") else path


def hidden_part(path: str) -> str | None:
    """Return a path up to its first hidden folder, which ends with a slash; None without one."""
    parts = path.split("/")[:-1]
    for number, part in enumerate(parts, start=1):
        if is_hidden_folder(part):
            return "/".join(parts[:number]) + "/"
    return None
