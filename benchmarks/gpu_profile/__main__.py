"""Profile both stages on one GPU in parts that are saved one by one, and judge the goals.

A part that fails saves its error, and the next one goes on. No part begins after the budget; a
second call with the same folder skips the parts that have succeeded. Compiled kernels are cached
in the folder. `--device cpu --tiny` runs everything on tiny models, which proves the program and
measures nothing.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Options, report

NAME = "gpu_profile"
_BUDGET_S = 570.0
_ERROR_LENGTH = 3000


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and report everything that is there."""
    options = _parsed(argv)
    ends = time.monotonic() + options.budget_s
    folder: Path = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # before torch is imported, here and in the commands
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu_profile needs a CUDA device, and there is none", file=sys.stderr)
        return 2
    from benchmarks.gpu_profile.goals import all_rows, goal_rows
    from benchmarks.gpu_profile.parts import Part, all_parts, free_memory
    from benchmarks.gpu_profile.setting import Setting

    setting = Setting(folder, options.device, options.tiny, ends)

    def measured(part: Part) -> dict[str, object]:
        free_memory()
        start = time.monotonic()
        try:
            result = part.measure(setting)
        except Exception:  # the next part goes on
            result = {"error": traceback.format_exc()[-_ERROR_LENGTH:]}
        return result | {"took_s": round(time.monotonic() - start, 1)}

    chosen = [p for p in all_parts() if options.parts is None or p.name in options.parts]
    for part in chosen:
        file = folder / f"{part.name}.json"
        if _has_succeeded(file) or setting.seconds_left() <= 0:
            continue
        print(f"{part.name} ({setting.seconds_left():.0f} s left)", file=sys.stderr, flush=True)
        file.write_text(json.dumps(measured(part), indent=1) + "\n")
    files = {part.name: folder / f"{part.name}.json" for part in all_parts()}
    results = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    for name, result in results.items():
        if "error" in result:
            line = str(result["error"]).strip().splitlines()[-1]
            print(f"{name} has failed: {line}", file=sys.stderr)
    rows = [*goal_rows(results), *all_rows(results)]
    report(NAME, rows, Options(json=options.json, quick=False))
    return 0


def _has_succeeded(file: Path) -> bool:
    return file.exists() and "error" not in json.loads(file.read_text())


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--json", action="store_true", help="one last line of JSON, no table")
    parser.add_argument("--out", type=Path, default=Path("gpu_profile_out"), help="a folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, uncompiled")
    parser.add_argument(
        "--budget-s", type=float, default=_BUDGET_S, help=f"seconds in all; default {_BUDGET_S:g}"
    )
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), help="names of parts; default all"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
