"""Apply CUDA's autocast rules on the CPU, so that a step counts as on a GPU in bf16."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# torch/csrc's lists for CUDA: always float32, and float32 where no dtype is given
_FLOAT32 = (
    *("acos", "asin", "cosh", "sinh", "tan", "exp", "expm1", "log", "log10", "log2", "log1p"),
    *("reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus"),
    *("layer_norm", "native_layer_norm", "group_norm", "cosine_similarity", "logsumexp"),
    *("binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "upsample_bicubic2d"),
    *("upsample_bicubic2d.vec", "upsample_bilinear2d.vec"),
)
_FLOAT32_BY_DEFAULT = (
    *("softmax.int", "log_softmax.int", "prod", "cumprod", "cumsum", "linalg_vector_norm"),
    *("sum", "sum.dim_IntList"),
)
_LOW = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def cuda_autocast_on_cpu() -> Iterator[None]:
    """Replace the CPU's autocast rules, until the end of the context."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in _FLOAT32:
            library.impl(name, _in_float32(_operator(name)), "AutocastCPU", allow_override=True)
        for name in _FLOAT32_BY_DEFAULT:
            rule = _with_float32_dtype(_operator(name))
            library.impl(name, rule, "AutocastCPU", allow_override=True)
        yield


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _in_float32(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            raised = {name: _raised(value) for name, value in kwargs.items()}
            return operator(*map(_raised, args), **raised)

    return run


def _with_float32_dtype(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            if args[0].dtype in _LOW and kwargs.get("dtype") is None:
                kwargs["dtype"] = torch.float32
            return operator(*args, **kwargs)

    return run


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _LOW else value


def _without_autocast() -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    return torch._C._ExcludeDispatchKeyGuard(keys)
