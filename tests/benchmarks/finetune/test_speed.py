"""That the finetuning benchmark counts and compares rightly; its figures are not judged here."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.finetune import gpu
from benchmarks.finetune import speed as finetune
from benchmarks.finetune.released_decoder import ReleasedSegmenter, released_decode
from benchmarks.finetune.timed_step import PROMPT_LOOP, PromptedStep, boxes_batch
from benchmarks.harness import Options, json_line
from benchmarks.sami.gpu import Fitted
from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Prompts

TI = NAMED["efficient_sam_ti"]
TINY = replace(
    TI,
    encoder=EncoderConfig(
        width=32, depth=2, heads=2, image_size=64, position_grid=4, neck_channels=32
    ),
    decoder=replace(TI.decoder, mlp_width=64),
)


def random_pair() -> tuple[Segmenter, ReleasedSegmenter]:
    """Both ways with the same weights, none of them zero."""
    torch.manual_seed(0)
    ours, released = Segmenter(TINY), ReleasedSegmenter(TINY)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    released.load_state_dict(ours.state_dict())
    return ours, released


def test_the_released_way_is_another_way_to_the_same_answers() -> None:
    ours, released = random_pair()
    features = torch.randn(2, 32, 4, 4)
    prompts = Prompts.of_boxes(boxes_batch(64, 2, 3).boxes_xyxy_px)
    with torch.no_grad():
        found, expected = released.decode(features, prompts), ours.decode(features, prompts)
    torch.testing.assert_close(found.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.iou, expected.iou, rtol=1e-4, atol=1e-4)


def test_the_released_way_holds_a_softmax_and_an_image_for_every_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, released = random_pair()
    shapes: list[tuple[int, ...]] = []
    softmax = Tensor.softmax

    def seen(scores: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(scores.shape))
        return softmax(scores, dim=dim)

    monkeypatch.setattr(Tensor, "softmax", seen)
    prompts = Prompts.of_boxes(boxes_batch(64, 1, 3).boxes_xyxy_px)
    with torch.no_grad():
        released_decode(released, torch.randn(1, 32, 4, 4), prompts)
    tokens, image = 1 + 4 + 6, 16  # IoU token, mask tokens, slots; 4 x 4 image tokens
    a_block = [(3, 8, tokens, tokens), (3, 8, tokens, image), (3, 8, image, tokens)]
    assert shapes == [*a_block, *a_block, (3, 8, tokens, image)]


def test_both_ways_learn_alike() -> None:
    batch = boxes_batch(64, 1, 3)
    gradients = []
    for model in random_pair():
        PROMPT_LOOP.losses(model, model.encode(batch.image), batch).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 100
    for ours, released in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, released, rtol=1e-2, atol=1e-3)


def test_masks_fill_their_boxes() -> None:
    """A mask's cells are four pixels wide."""
    batch = boxes_batch(64, 2, 5)
    for mask, box in zip(batch.masks.flatten(0, 1), batch.boxes_xyxy_px.flatten(0, 1), strict=True):
        rows, columns = mask.nonzero().T
        low_high = [4 * columns.min(), 4 * rows.min(), 4 * columns.max() + 4, 4 * rows.max() + 4]
        assert box.tolist() == [float(side) for side in low_high]


def test_operations_of_the_released_way_worked_out() -> None:
    """One prompt: 4096 image tokens of 256 channels, 11 tokens; products in millions.

    K and V of the image in both blocks and the last look, its Q and output in both blocks: 10
    projections of 4096 * 256 * 128 = 134.2. Scores and sums of these five attentions: 10 of
    4096 * 11 * 128 = 5.8. Upscaling: 4096 * 256 * 256 = 268.4 and 16384 * 64 * 128 = 134.2, kernels
    65536 * 32 * 4 = 8.4. The tokens' MLPs: 2 * 2 * 11 * 256 * 2048 = 23.1, and little else.
    """
    products = 10 * 134.2 + 10 * 5.8 + 268.4 + 134.2 + 8.4 + 23.1
    found = finetune.decode_flop(TI, 1, "released")
    assert found == pytest.approx(2e6 * products, rel=0.01)


def test_operations_of_our_way_worked_out() -> None:
    """Four prompts; products in millions, numbers as for the released way.

    They share the first block's K, V and Q, 3 * 134.2, and use them in 3 products of 5.8 each.
    The others have 88 columns (11 tokens, 8 heads) of 4096 * 256 = 92.3: what the first block
    writes to the image, four in the second, two in the last look.
    """
    own = 3 * 5.8 + 7 * 92.3 + 268.4 + 134.2 + 8.4 + 23.1
    found = finetune.decode_flop(TI, 4, "ours")
    assert found == pytest.approx(2e6 * (3 * 134.2 + 4 * own), rel=0.02)


@pytest.mark.slow
def test_every_row_of_a_tiny_model_is_in_the_json() -> None:
    rows = finetune.decode_rows(TINY, prompts=3, rounds=2, seconds=100)
    rows += finetune.step_rows(TINY, masks=2, rounds=1, seconds=0)
    found = {row["id"]: row for row in json.loads(json_line("finetune", rows))["rows"]}
    goals = {row_id.removeprefix("finetune."): row["goal"] for row_id, row in found.items()}
    assert goals == {
        "decode64_time": 0.55,
        "decode64_processor_time": None,
        "decode64_memory": 0.40,
        "decode64_difference": 1e-4,
        "decode64_operations": None,
        "decode64_floor": None,
        "step_time": 0.65,
        "step_processor_time": None,
    }
    assert found["finetune.decode64_difference"]["met"]
    assert found["finetune.step_time"]["value"] > 0


def test_a_step_changes_what_learns() -> None:
    step = PromptedStep(Segmenter(TINY), batch=2, masks=3)
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    step()
    moved = {name for name, p in step.model.named_parameters() if not torch.equal(p, before[name])}
    # a candidate that is the best of no mask learns nothing of masks
    still = {name for name in before.keys() - moved if ".hypernetworks." not in name}
    assert still == {"prompt_encoder.label_vectors.positive.weight"}


def test_rows_of_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 photos of 10 TFLOP in 0.2 s are 200 TFLOP/s, 0.253 of 790."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    found = Fitted(batch=4, seconds=0.2, memory=3 * 2**30)
    share, images, memory = gpu.gpu_rows("finetune.gpu_ti_32", "Ti", found, 10**13, gpu.PEAK, 0.25)
    assert share.ratio() == pytest.approx(0.2532, abs=1e-4)
    assert share.met()
    assert images.value == pytest.approx(20)
    assert memory.value == 3


def test_a_images_step_counts_the_encoder_once_and_the_decoder_for_every_mask() -> None:
    one, two, three = (gpu.image_flop(TINY, masks) for masks in (2, 3, 4))
    assert two - one == three - two > 0
    assert one > 3 * (two - one) / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_learns_in_bf16() -> None:
    """In a process of its own, where shapes are not checked: what checks them does not compile."""
    code = """
import torch
from benchmarks.finetune.timed_step import PromptedStep
from efficientsam_pl.models.config import EncoderConfig, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
encoder = EncoderConfig(width=24, depth=1, heads=3, image_size=64, position_grid=4)
step = PromptedStep(Segmenter(SegmenterConfig(encoder=encoder)), 2, 3, "cuda")
weight = step.model.mask_decoder.iou_token.weight.clone()
step()
assert not torch.equal(step.model.mask_decoder.iou_token.weight, weight)
assert torch.isfinite(step.model.mask_decoder.iou_token.weight).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_quick_leaves_the_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []
    monkeypatch.setattr(finetune, "decode_rows", lambda *_, **__: [])
    monkeypatch.setattr(finetune.mask_ap, "rows", lambda quick: [])
    monkeypatch.setattr(finetune, "report", lambda name, rows, options: seen.append(options))
    finetune.main(["--json", "--quick"])
    assert seen == [Options(json=True, quick=True)]
