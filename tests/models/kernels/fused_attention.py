"""Compare the fused attentions with their formulas under autograd, on one device.

A program of its own: Triton's interpreter is chosen before Triton is imported. Arguments: the
device and the dtype, and then "operators", "checks" or "decoder".
"""

import sys
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.models.config import MaskDecoderConfig
from efficientsam_pl.models.kernels.choice import set_kernels
from efficientsam_pl.models.kernels.image_to_token import image_to_token, image_to_token_backward
from efficientsam_pl.models.kernels.token_to_image import (
    attend_and_pass,
    token_to_image,
    token_to_image_backward,
)
from efficientsam_pl.models.two_way import TwoWayTransformer

# images, prompts of each, image tokens, channels, heads, tokens; a tile has 64 image tokens
SIZES = ((2, 1, 15, 32, 8, 5), (2, 3, 70, 32, 8, 3), (1, 1, 16, 16, 2, 7), (1, 2, 160, 16, 4, 2))
EPS = 1e-5


def updated_by_formula(
    image: Tensor, position: Tensor, keys: Tensor, offset: Tensor, values: Tensor, *norm: Tensor
) -> Tensor:
    image = image.repeat_interleave(keys.shape[0] // image.shape[0], 0)
    scores = torch.einsum("mnc,mhtc->mhtn", image + position, keys) + offset[..., None]
    attended = torch.einsum("mhtn,mhtc->mnc", scores.softmax(2), values)
    return F.layer_norm(image + attended, image.shape[-1:], *norm, EPS)


def pooled_by_formula(image: Tensor, position: Tensor, queries: Tensor) -> Tensor:
    weights = torch.einsum("mnc,mhtc->mhtn", image + position, queries).softmax(-1)
    return torch.einsum("mhtn,mnc->mhtc", weights, image)


def leaf(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype).requires_grad_()


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        distance = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert distance < tolerance, (distance, [t.shape for t in expected])


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    given = [torch.randn(out.shape, device=out.device).to(out.dtype) for out in outputs]
    return torch.autograd.grad(list(outputs), list(inputs), given)


def cases(
    device: str, dtype: torch.dtype
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Positions; inputs of image_to_token; inputs of token_to_image."""
    for p, r, n, c, h, t in SIZES:
        torch.manual_seed(0)
        of = {"device": device, "dtype": dtype}
        position = [torch.randn(n, c, device=device).to(dtype)]
        folded = [leaf(p * r, h, t, c, **of), leaf(p * r, h, t, **of), leaf(p * r, h, t, c, **of)]
        norm = [leaf(c, device=device, dtype=torch.float32) for _ in range(2)]
        yield (
            position,
            [leaf(p, n, c, **of), *folded, *norm],
            [leaf(p * r, n, c, **of), leaf(p * r, h, t, c, **of)],
        )


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


def compare_operators(device: str, dtype: torch.dtype) -> None:
    """Results and gradients are those of float32, up to the dtype's rounding."""
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for [position], update, pool in cases(device, dtype):
        exact = in_float32(update)
        expected = updated_by_formula(exact[0], position.float(), *exact[1:])
        actual = image_to_token(update[0], position, *update[1:], EPS)
        assert_close([actual], [expected], tolerance)
        assert_close(gradients([actual], update), gradients([expected], exact), tolerance)
        again = gradients([actual_of(update, position)], update)
        assert all(map(torch.equal, again, gradients([actual_of(update, position)], update)))
        by_columns = [x.mT.contiguous().mT for x in (update[0], position, *update[1:4:2])]
        strided = [by_columns[0], by_columns[2], update[2], by_columns[3], *update[4:]]
        assert torch.allclose(actual_of(strided, by_columns[1]), actual, atol=tolerance)

        exact = in_float32(pool)
        pooled = pooled_by_formula(exact[0], position.float(), exact[1])
        outputs = attend_and_pass(pool[0], position, pool[1])
        assert_close(outputs, [pooled, exact[0]], tolerance)
        expected_gradients = gradients([pooled, exact[0] * 1], exact)
        assert_close(gradients(outputs, pool), expected_gradients, tolerance)
        image, placed, queries = (x.mT.contiguous().mT for x in (pool[0], position, pool[1]))
        strided_outputs = attend_and_pass(image, placed, queries)
        assert_close(strided_outputs, [pooled, exact[0]], tolerance)
        assert_close(gradients(strided_outputs, pool), expected_gradients, tolerance)


def actual_of(update: list[Tensor], position: Tensor) -> Tensor:
    return image_to_token(update[0], position, *update[1:], EPS)


def check_operators(device: str, dtype: torch.dtype) -> None:
    """Schemas, fake implementations and compilation with any sizes."""
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for [position], update, pool in list(cases(device, dtype))[1:2]:
        with torch.no_grad():
            out = actual_of(update, position)
            pooled, logsumexp = token_to_image(pool[0], position, pool[1])
        torch.library.opcheck(
            image_to_token,
            (update[0], position, *update[1:], EPS),
            test_utils=(*checks, "test_autograd_registration"),
        )
        fixed = [tensor.detach() for tensor in update]
        back = (out, fixed[0], position, *fixed[1:-1], EPS)
        torch.library.opcheck(image_to_token_backward, back, test_utils=checks)
        image, queries = (tensor.detach() for tensor in pool)
        forward = (image, position, queries)
        torch.library.opcheck(token_to_image, forward, test_utils=checks)
        back = (pooled, image, image, position, queries, logsumexp, logsumexp)
        torch.library.opcheck(token_to_image_backward, back, test_utils=checks)


def compare_decoders(device: str, dtype: torch.dtype) -> None:
    """The transformer with fused kernels is the plain one: outputs, gradients, and compiled."""
    torch.manual_seed(0)
    fused = TwoWayTransformer(32, MaskDecoderConfig(mlp_width=32)).to(device)
    plain = TwoWayTransformer(32, MaskDecoderConfig(mlp_width=32)).to(device)
    for parameter in fused.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain.load_state_dict(fused.state_dict())
    set_kernels(fused, "triton")
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    place = torch.randn(1, 16, 32, device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for prompts, tokens in ((3, 7), (1, 9)):
        inputs = [
            leaf(*shape, device=device, dtype=torch.float32)
            for shape in ((2, prompts, tokens, 32), (2, 16, 32))
        ]
        with autocast:
            expected = plain(*inputs, place)
            models = [fused(*inputs, place), compiled(*inputs, place)]
        weights = list(plain.parameters())
        of_plain = gradients(expected, [*inputs, *weights])
        for model in models:
            assert [out.dtype for out in model] == [out.dtype for out in expected]
            assert_close(model, expected, tolerance)
            ours = gradients(model, [*inputs, *fused.parameters()])
            scale = max(float(gradient.norm()) for gradient in of_plain)
            for gradient, reference in zip(ours, of_plain, strict=True):
                assert (gradient - reference).norm() < tolerance * scale


if __name__ == "__main__":
    chosen = {
        "operators": compare_operators,
        "checks": check_operators,
        "decoder": compare_decoders,
    }[sys.argv[3]]
    chosen(sys.argv[1], getattr(torch, sys.argv[2]))
