"""Find words that this project has replaced: python .ci/words.py [FILE ...], by default all of git.

Reads identifiers, comments, docstrings and messages of Python files, and other text files as a
whole. Prints `path:line: word` and exits with 1 where there is any.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
TEXTS = {".md", ".yaml", ".sh", ".toml"}
# Dated records, kept in the words of their day
RECORDS = CLONE / "benchmarks/results"
PHRASES = (
    *("told", "untold", "tells", "asked", "asks", "anew"),
    *("lies beside", "lie beside", "goes on from", "go on from", "gone on with"),
)
# A docstring says in the imperative what its function does, or names it
OPENINGS = {"Of", "What", "Where", "Which", "How"}
# Words that say nothing of a name's role, as a whole identifier or a part of one. In tests,
# whose names are sentences, only OLD_NAMES are wrong
VAGUE_PARTS = {"told", "untold", "asked", "anew"}
# Not "tell": it is a method of files
VAGUE_NAMES = {"found", "own", "one", "some", "ask", "answer", "question"}
OLD_NAMES = set(
    re.findall(
        r"\w+",
        """
    Answers Arrangement Asked Asking Companion Course CroppedImages Damage Damaged DiskRoom
    DrawnPrompter EachPrompter EndlessBatches Examination Found FeaturePictures Headed
    InteractivePrompter LaidOut Lesson Marks MaskPictures MaskedImages OnceBatches Parts
    PhotoSegmenter PlainCheckpoints Prompter RunSetting SampleStream ScoredPhotos ShardedStrategy
    Shelf Slot TrainingSets WorkClock
    _FREE _TOLD _untaught _written_aside ahead asked_photos aside by_name correction
    cut_by_crop draw_key error_clicks feature_pictures grown guarded in_one_graph label_regions
    learned_from lightning_form lr_share mask_pictures never_asked open_sets painted persistently
    reader_of scorable summed_pieces wrap_blocks written_whole
    """,
    )
)
MESSAGE_CALLS = {"print", "warn", "warning", "info", "error", "exception", "debug", "write"}
MESSAGE_KEYWORDS = {"help", "description", "epilog", "metavar"}
PHRASE = re.compile(
    r"\b(" + "|".join(p.replace(" ", r"[\s#]+") for p in PHRASES) + r")\b", re.IGNORECASE
)

Finding = tuple[int, str]  # line, word
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main(paths: list[str]) -> int:
    """Print every finding; the exit code says whether there was any."""
    count = 0
    for path in map(Path, paths) if paths else tracked():
        shown = path.relative_to(CLONE) if path.is_relative_to(CLONE) else path
        for line, word in sorted(set(findings(path))):
            print(f"{shown}:{line}: {word}")
            count += 1
    return int(count > 0)


def tracked() -> Iterator[Path]:
    """List the files under version control that the check reads."""
    command = ["git", "-C", str(CLONE), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.check_output([*command, "--exclude-standard"], text=True).split("\0")
    for path in (CLONE / name for name in names if name):
        is_text = path.suffix in {".py", *TEXTS} or path.name in {"Makefile", "run"}
        if path.exists() and is_text and not path.is_relative_to(RECORDS):
            yield path


def findings(path: Path) -> Iterator[Finding]:
    """Yield replaced words of one file, with their lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from in_tokens(text, strict="tests" not in path.parts)
        yield from in_strings(ast.parse(text))
    else:
        yield from in_text(text)


def in_text(text: str, first: int = 1) -> Iterator[Finding]:
    """Yield phrases, and old names in `code`, of a text that begins at line `first`."""
    for match in PHRASE.finditer(text):
        phrase = " ".join(re.split(r"[\s#]+", match[0]))
        yield first + text.count("\n", 0, match.start()), phrase
    for number, line in enumerate(text.splitlines(), start=first):
        for code in re.findall(r"`([^`]+)`", line):
            yield from ((number, w) for w in re.findall(r"\w+", code) if w in OLD_NAMES)


def in_tokens(text: str, strict: bool) -> Iterator[Finding]:
    """Check identifiers and comments; a comment of several lines is read as one text."""
    comment: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and is_old(token.string, strict):
            yield line, token.string
        elif token.type == tokenize.COMMENT:
            if comment and line != last + 1:
                yield from in_text("\n".join(comment), last + 1 - len(comment))
                comment = []
            comment.append(token.string)
            last = line
    yield from in_text("\n".join(comment), last + 1 - len(comment))


def is_old(name: str, strict: bool) -> bool:
    """Check whether an identifier is a replaced one, or if `strict` a vague word."""
    vague = name in VAGUE_NAMES or not VAGUE_PARTS.isdisjoint(name.lower().split("_"))
    return name in OLD_NAMES or (strict and vague)


def in_strings(tree: ast.Module) -> Iterator[Finding]:
    """Check docstrings and messages: raised, printed, logged, or help of the command line."""
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            yield from in_docstring(node)
        elif isinstance(node, ast.Raise):
            yield from in_messages([node])
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in MESSAGE_CALLS or name.endswith("Error"):
                yield from in_messages(node.args)
            yield from in_messages(k.value for k in node.keywords if k.arg in MESSAGE_KEYWORDS)


def in_docstring(node: Documented) -> Iterator[Finding]:
    """Yield phrases of a docstring, and an opening that names no thing."""
    text = ast.get_docstring(node, clean=False)
    if text is not None:
        line = node.body[0].lineno
        yield from in_text(text, line)
        opening = re.match(r"\w+", text)
        if opening and opening[0] in OPENINGS:
            yield line, opening[0]


def in_messages(nodes: Iterable[ast.AST]) -> Iterator[Finding]:
    """Yield phrases of all string constants below the nodes."""
    for node in (below for top in nodes for below in ast.walk(top)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from in_text(node.value, node.lineno)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
