"""Resolve the image names of annotation files to files in a folder, local or in a store.

Exporters write names for another machine: backslashes, absolute paths, URLs, another case. A name
is repaired only where exactly one file fits and no other name has a claim to that file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import unquote

from efficientsam_pl.storage.files import full_path, is_local, local_path
from efficientsam_pl.storage.filesystems import HTTP, store
from efficientsam_pl.storage.retries import with_retries

K = TypeVar("K", bound=Hashable)
Names = tuple[str, ...]
LEAVES = "leaves the folder"
_SLASHES, _DOTS, _PERCENT, _UNICODE = "slashes", "dots", "percent-encoding", "Unicode form"
_URL, _PREFIX, _CASE = "URL", "leading folders", "case"
_GUESSES = {_URL, _PREFIX, _CASE}  # two names may mean two files; the others are mere spellings
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # two letters at least: C:/ is a drive


@dataclass(frozen=True)
class Resolved(Generic[K]):
    """Paths by key; `missing` has a path with the reason, `repaired` the rules that were needed."""

    paths: dict[K, str]
    missing: dict[K, str]
    repaired: dict[K, str]


def resolve_paths(names: Mapping[K, Sequence[str]], folder: str) -> Resolved[K]:
    """Resolve names to files in a folder, from one listing per folder.

    The exact name comes first, then spellings of it (backslashes, `./` and inner `..`, %20,
    another Unicode form), then guesses: without its leading folders, as a URL's last parts, in
    another case. Of two different names that are guessed to be one file neither is resolved, and
    a file that is named exactly is no other name's. Web servers list nothing: there a name is
    taken as it is, with slashes for backslashes.

    Args:
        names: Names below the folder by key, the likeliest first; at least one each.
        folder: Local, or in a store.
    """
    search = _Search(folder)
    hits, missing = {}, {}
    for key, candidates in names.items():
        try:
            hits[key] = search.resolve(candidates)
        except _UnresolvedError as error:
            missing[key] = str(error)
    for key, rival in _rivals(hits).items():
        missing[key] = f"{search.joined(hits[key].name)} (ambiguous: {rival})"
    resolved = {key: hit for key, hit in hits.items() if key not in missing}
    return Resolved(
        {key: hit.path for key, hit in resolved.items()},
        {key: missing[key] for key in names if key in missing},
        {key: ", ".join(hit.rules) for key, hit in resolved.items() if hit.rules},
    )


class _UnresolvedError(Exception):
    """A name without a file; the message is its path with the reason."""


@dataclass(frozen=True)
class _Hit:
    """A file for a name; `spelling` is equal for names that differ only in their spelling."""

    path: str
    name: str
    spelling: str
    rules: Names = ()

    @property
    def guessed(self) -> bool:
        return not _GUESSES.isdisjoint(self.rules)


@dataclass(frozen=True)
class _Text:
    """A name split at its slashes, with the rules that led to it."""

    parts: Names
    rules: Names


@dataclass(frozen=True)
class _Listing:
    """The names of the files and the folders in a folder."""

    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    _by_form: dict[tuple[Callable[[str], str], bool], dict[str, list[str]]] = field(
        default_factory=dict
    )

    def matching(self, name: str, form: Callable[[str], str], *, folder: bool) -> Sequence[str]:
        """Return the names of files or folders that have the same form as a name."""
        entries = self.folders if folder else self.files
        if form is _as_is:
            return (name,) if name in entries else ()
        if (form, folder) not in self._by_form:
            by_form: dict[str, list[str]] = defaultdict(list)
            for entry in sorted(entries):
                by_form[form(entry)].append(entry)
            self._by_form[form, folder] = dict(by_form)
        return self._by_form[form, folder].get(form(name), ())


class _Search:
    """The folder, listed as far as names need it."""

    def __init__(self, folder: str) -> None:
        self._root = folder.rstrip("/")
        self._on_web = folder.startswith(HTTP)
        self._root_parts = tuple(part for part in full_path(folder).split("/") if part)
        self._listings: dict[str, _Listing] = {}

    def resolve(self, names: Sequence[str]) -> _Hit:
        """Return the file of the first name that has one, an exact name before repaired ones.

        Raises:
            _UnresolvedError: No name has exactly one file.
        """
        for name in names:
            if self._exists(name):
                return _Hit(self.joined(name), name, unicodedata.normalize("NFC", name))
        failure = None
        for name in names:
            try:
                if (hit := self._repaired(name)) is not None:
                    return hit
            except _UnresolvedError as error:
                failure = failure or error
        raise failure or _UnresolvedError(self.joined(names[0]))

    def joined(self, name: str) -> str:
        """Return the path of a name below the folder."""
        return f"{self._root}/{name}"

    def _exists(self, name: str) -> bool:
        below, _, last = name.rpartition("/")
        parts = below.split("/") if below else []
        if not last or "." in (*parts, last) or ".." in (*parts, last) or "" in parts:
            return False
        if name.startswith("/"):
            return False
        if self._on_web:
            return "\\" not in name and not _SCHEME.match(name)
        return last in self._listing(below).files

    def _repaired(self, name: str) -> _Hit | None:
        texts = list(self._texts(name))
        if not texts:
            return None
        spelling = "/".join(unicodedata.normalize("NFC", part) for part in texts[-1].parts)
        if self._on_web:
            path = self.joined("/".join(texts[0].parts))
            return _Hit(path, name, spelling, texts[0].rules)
        for parts, form, rules in self._attempts(texts, is_url=bool(_SCHEME.match(name))):
            matches = list(self._walk(parts, form))
            if len(matches) > 1:
                listed = " and ".join("/".join(match) for match in matches[:2])
                raise _UnresolvedError(f"{self.joined(name)} (ambiguous: {listed})")
            if matches:
                return _Hit(self.joined("/".join(matches[0])), name, spelling, rules)
        return None

    def _texts(self, name: str) -> Iterator[_Text]:
        """Yield the name with slashes and without dots, then percent-decoded.

        Raises:
            _UnresolvedError: Its `..` leave the folder.
        """
        decoded = _decoded(name)
        for text, rules in ((name, ()), (decoded, (_PERCENT,))):
            if rules and text == name:
                continue
            dotted = [part for part in text.replace("\\", "/").split("/") if part]
            used = (_SLASHES,) if "/".join(dotted) != text else ()
            parts = self._without_dots(dotted, name)
            dots = (_DOTS,) if len(parts) != len(dotted) else ()
            if parts:
                yield _Text(parts, (*used, *rules, *dots))

    def _without_dots(self, parts: Sequence[str], name: str) -> Names:
        """Resolve `.` and `..` in a relative name; `../images/a.jpg` is in the folder `images`."""
        if not {".", ".."} & set(parts):
            return tuple(parts)
        root, whole = self._root_parts, list(self._root_parts)
        for part in parts:
            if part == "..":
                if not whole:
                    break
                whole.pop()
            elif part != ".":
                whole.append(part)
        if tuple(whole[: len(root)]) != root or len(whole) == len(root):
            raise _UnresolvedError(f"{self.joined(name)} ({LEAVES})")
        return tuple(whole[len(root) :])

    @staticmethod
    def _attempts(
        texts: Iterable[_Text], *, is_url: bool
    ) -> Iterator[tuple[Names, Callable[[str], str], Names]]:
        """Yield what to look up, and by which form of the names, the smallest repair first."""
        texts, cut = list(texts), _URL if is_url else _PREFIX
        forms = ((_as_is, ()), (_composed, (_UNICODE,)))
        deepest = max((len(text.parts) for text in texts), default=0)
        for by_case in (False, True):
            for depth in range(deepest):
                stripped = (cut,) if depth else ()
                for text in texts:
                    if depth < len(text.parts):
                        parts, rules = text.parts[depth:], (*text.rules, *stripped)
                        for form, more in ((_caseless, (_CASE,)),) if by_case else forms:
                            yield parts, form, (*rules, *more)

    def _walk(self, parts: Names, form: Callable[[str], str], below: Names = ()) -> Iterator[Names]:
        """Yield the files below a folder whose parts have the same forms."""
        listing = self._listing("/".join(below))
        first, rest = parts[0], parts[1:]
        for entry in listing.matching(first, form, folder=bool(rest)):
            if rest:
                yield from self._walk(rest, form, (*below, entry))
            else:
                yield (*below, entry)

    def _listing(self, below: str) -> _Listing:
        if below not in self._listings:
            folder = f"{self._root}/{below}" if below else self._root or "/"
            self._listings[below] = _listed_here(folder) if is_local(folder) else _listed(folder)
        return self._listings[below]


def _listed_here(folder: str) -> _Listing:
    files: set[str] = set()
    folders: set[str] = set()
    try:
        with os.scandir(local_path(folder)) as entries:
            for entry in entries:
                kind = Path(entry.path) if entry.is_symlink() else entry  # it takes loops of links
                if kind.is_dir():
                    folders.add(entry.name)
                elif kind.is_file():  # no link to nothing
                    files.add(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return _Listing(frozenset(files), frozenset(folders))


def _listed(folder: str) -> _Listing:
    fs, plain = store(folder)
    try:
        listed = with_retries(partial(fs.ls, plain, detail=True), folder)
    except (FileNotFoundError, NotADirectoryError):
        return _Listing()
    files: set[str] = set()
    folders: set[str] = set()
    for info in listed:
        path = str(info["name"]).rstrip("/")
        if path.strip("/") != plain.strip("/"):  # a store lists a file as itself
            (folders if info["type"] == "directory" else files).add(path.rpartition("/")[2])
    return _Listing(frozenset(files), frozenset(folders))


def _rivals(hits: Mapping[K, _Hit]) -> dict[K, str]:
    """Return the guessed names whose file another name has a claim to, with that claim."""
    by_path: dict[str, dict[str, _Hit]] = defaultdict(dict)
    for hit in hits.values():
        kept = by_path[hit.path].get(hit.spelling)
        if kept is None or kept.guessed:
            by_path[hit.path][hit.spelling] = hit
    rivals = {}
    for key, hit in hits.items():
        if hit.guessed and len(by_path[hit.path]) > 1:
            rival = next(h for s, h in by_path[hit.path].items() if s != hit.spelling)
            rivals[key] = f"{rival.name} may be the same file {hit.path}"
    return rivals


def _decoded(name: str) -> str:
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        return name


def _as_is(name: str) -> str:
    return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(_composed(name).casefold())
