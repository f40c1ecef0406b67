"""A tiny stage's step, and the Triton kernels that inductor generates for its regions."""

import re
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from tests.training.tiny_stages import tiny_batch, tiny_stage

_KERNEL = re.compile(
    r"^(\w+) = async_compile\.triton\('\w+', '''\n(.*?)'''", re.MULTILINE | re.DOTALL
)


def losses_and_gradients(recipe: str, **trainer: Any) -> dict[str, Tensor]:
    """Compute a tiny step's loss and the gradients of its parameters, by their names."""
    stage = tiny_stage(recipe, **trainer)
    loss = stage.training_step(tiny_batch(recipe, 2), 0)["loss"]
    loss.backward()
    named = {name: p.grad for name, p in stage.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **named}


def kernels_in(source: str) -> dict[str, str]:
    """Find the kernels of a graph's generated code: text by name."""
    return dict(_KERNEL.findall(source))


def load_kernel(name: str, text: str) -> Any:
    """Load a kernel without a GPU, as inductor's autotuner of its launch configurations.

    Its text, which Triton reads, is kept in a file in the current folder.
    """
    from torch._inductor.runtime import triton_helpers

    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=Path.cwd(), delete=False) as file:
        file.write(text)
    module = types.ModuleType(Path(file.name).stem)
    module.__file__ = file.name
    with mock.patch.object(triton_helpers, "set_driver_to_gpu"):
        exec(compile(text, file.name, "exec"), module.__dict__)
    return module.__dict__[name]


def is_combined(kernel: Any) -> bool:
    """Tell whether several kernels were combined to this one."""
    return "combo_grid_meta" in kernel.inductor_meta
