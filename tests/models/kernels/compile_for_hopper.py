"""Compile the fused attentions for sm_90 at SAM's size, without a GPU.

Argument: the bytes of shared memory that a program may use.
"""

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from efficientsam_pl.models.kernels import image_to_token as update
from efficientsam_pl.models.kernels.triton_kernels import image_to_token, token_to_image
from efficientsam_pl.models.kernels.triton_kernels.tiles import Tiling

SINGLE = {"weight", "bias", "grad_offset", "grad_norm", "logsumexp", "inner"}
SIZES = {"n": "i32", "prompts": "i32", "tokens": "i32", "eps": "fp32"}


def shared_memory(kernel: Any, tiling: Tiling, **more: Any) -> int:
    constants = {
        **{"HEADS": 8, "TOKENS": 16, "CHANNELS": 256, "ROWS": tiling.rows, "PRECISION": "tf32"},
        **more,
    }
    types = {
        name: "constexpr"
        if name in constants
        else SIZES.get(name, "*fp32" if name in SINGLE else "*bf16")
        for name in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name == "n"
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, constexprs=places, attrs=aligned)
    options = {"num_warps": tiling.warps, "num_stages": 1}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma" in compiled.asm["ptx"]  # products on Hopper's tensor cores
    return int(compiled.metadata.shared)


used = {
    "update": shared_memory(image_to_token.forward_kernel, image_to_token.FORWARD, CHUNK=512),
    "update backward": shared_memory(
        image_to_token.backward_kernel, Tiling(update.ROWS, 512, 8), CHUNK=512, SHARED=False
    ),
    "pool": shared_memory(token_to_image.forward_kernel, token_to_image.FORWARD),
    "pool backward": shared_memory(
        token_to_image.backward_kernel, token_to_image.BACKWARD, CHUNK=512
    ),
}
assert max(used.values()) <= int(sys.argv[1]), used
