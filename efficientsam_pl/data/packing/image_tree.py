"""The images in a folder and its subfolders, local or remote."""

from efficientsam_pl.data.images.files import FolderListing, is_image_name, list_folder
from efficientsam_pl.data.packing.class_folders import hidden_part
from efficientsam_pl.data.packing.inventory import (
    BROKEN_LINK,
    HIDDEN_FOLDER,
    REPEATED_FOLDER,
    UNREADABLE,
    Inventory,
    file_kind,
)
from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.filesystems import store


def list_tree(root: str) -> tuple[FolderListing, list[str]]:
    """List a folder recursively, and the names of the folders in it.

    Links are followed, as by torchvision's ImageFolder. Hidden folders are not listed.
    """
    if is_local(root):
        folder = local_path(root)
        listing = list_folder(folder, recursive=True)
        return listing, [path.name for path in folder.iterdir() if path.is_dir()]
    fs, path = store(root)
    images, other = list[str](), list[str]()
    hidden, folders = dict[str, None](), set[str]()
    for full_name, status in fs.find(path, withdirs=True, detail=True).items():
        name, is_folder = full_name[len(path) + 1 :].rstrip("/"), status["type"] == "directory"
        if is_folder or "/" in name:
            folders.add(name.split("/")[0])
        outer = hidden_part(f"{name}/" if is_folder else name)
        if outer is not None:
            hidden[outer] = None
        elif not is_folder:
            (images if is_image_name(name) else other).append(name)
    listing = FolderListing(tuple(images), tuple(other), hidden=tuple(hidden))
    return listing, [name for name in folders if name]


def leave_out_of_tree(listing: FolderListing, inventory: Inventory) -> None:
    """Count everything in a tree that is no image."""
    for name in listing.other:
        inventory.leave_out(file_kind(name), name)
    inventory.leave_out_all(BROKEN_LINK, listing.broken)
    inventory.leave_out_all(UNREADABLE, listing.unreadable)
    inventory.leave_out_all(HIDDEN_FOLDER, listing.hidden)
    inventory.leave_out_all(REPEATED_FOLDER, listing.repeated)
