"""Rows of a profile: its goals, from the saved figures of its parts."""

from collections.abc import Iterator, Mapping

from benchmarks.gpu_profile.setting import Result
from benchmarks.harness import Row

_ALONE = (1024, 4096)  # batches at which SAMI's share of a product is judged


def goal_rows(results: Mapping[str, Result]) -> Iterator[Row]:
    """Make a row for each goal whose parts have succeeded."""
    measured = {name: result for name, result in results.items() if "error" not in result}
    for student, goal in (("ti", 60), ("s", 45)):
        yield from _finetuning(measured, student, goal)
    product = measured.get("product", {}).get("tflops")
    yield from _through_command(measured)
    if product is not None:
        yield from _shares(measured, product)
    for student in ("ti", "s"):
        encoder = measured.get(f"encoder_{student}")
        if encoder is not None:
            yield Row(
                id=f"gpu.encoder_{student}",
                work="inference of the encoder at 1024, batch 8, bf16, compiled; reference: with "
                "the released code's attention",
                value=encoder["images_per_s"],
                unit="images/s",
                reference=encoder["released_images_per_s"],
                goal=3,
                better="higher",
            )


def all_rows(results: Mapping[str, Result]) -> Iterator[Row]:
    """Make a row for each part with a rate, for information."""
    for name, result in results.items():
        if "images_per_s" in result:
            yield Row(
                id=f"gpu.part.{name}",
                work=f"{result['step_ms']:.2f} ms a step" if "step_ms" in result else "inference",
                value=result["images_per_s"],
                unit="images/s",
                better="higher",
            )


def _finetuning(measured: Mapping[str, Result], student: str, goal: float) -> Iterator[Row]:
    """Choose the fastest of a student's runs of 8 and 16 images."""
    names = [name for name in measured if name.startswith(f"command_finetune_{student}_")]
    fitting = [name for name in names if name.split("_")[3] in ("8", "16")]
    if fitting:
        best = max(fitting, key=lambda name: measured[name]["images_per_s"])
        yield Row(
            id=f"gpu.finetune_{student}",
            work=f"finetuning at 1024, 32 masks, six rounds, the fastest: {best}",
            value=measured[best]["images_per_s"],
            unit="images/s",
            goal=goal,
            better="higher",
        )


def _through_command(measured: Mapping[str, Result]) -> Iterator[Row]:
    names = [name for name in measured if name.startswith("command_pretrain_s_256_")]
    alone = measured.get("sami_alone_256")
    if names and alone is not None:
        best = max(names, key=lambda name: measured[name]["images_per_s"])
        yield Row(
            id="gpu.sami_command",
            work=f"SAMI of ViT-S, stored features, batch 256, the fastest: {best}; reference: "
            "model, loss and optimizer alone",
            value=measured[best]["images_per_s"],
            unit="images/s",
            reference=alone["images_per_s"],
            goal=0.85,
            better="higher",
        )


def _shares(measured: Mapping[str, Result], product: float) -> Iterator[Row]:
    alone = [measured[name] for n in _ALONE if (name := f"sami_alone_{n}") in measured]
    cases = [("sami_alone", "SAMI of ViT-S alone", max(alone, key=_tflops), 0.45)] if alone else []
    if "online_512" in measured:
        online = measured["online_512"]
        cases.append(("online_224", "SAMI of ViT-S with ViT-H online at 224", online, 0.5))
    for row_id, work, result, goal in cases:
        yield Row(
            id=f"gpu.{row_id}",
            work=f"{work}, batch {result['batch']}; reference: a large product",
            value=result["tflops"],
            unit="TFLOP/s",
            reference=product,
            goal=goal,
            better="higher",
        )


def _tflops(result: Result) -> float:
    return float(result["tflops"])
