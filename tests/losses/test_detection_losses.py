"""Detection's losses against a plain loop over images, and their sampling."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from efficientsam_pl.losses.detection_losses import DetectionLosses
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.proposals import propose
from efficientsam_pl.models.detection.targets import (
    BACKGROUND,
    match_anchors,
    sample_matches,
    split_objects,
)
from efficientsam_pl.recipes.detection.sampled_losses import sampled_losses
from efficientsam_pl.structures import DetectionBatch
from tests.models.detection.conftest import small_config

SIDE = 64


def batch(counts: tuple[int, ...] = (2, 0, 3), seed: int = 0) -> DetectionBatch:
    """Images with rectangles as objects, whose corners are whole pixels."""
    draw = torch.Generator().manual_seed(seed)
    objects, images = sum(counts), len(counts)
    corner = torch.randint(0, 30, (objects, 2), generator=draw)
    size = torch.randint(8, 34, (objects, 2), generator=draw)
    boxes = torch.cat([corner, corner + size], 1)
    masks = torch.zeros(objects, SIDE, SIDE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0 : (x0 + x1 + 1) // 2] = True
    return DetectionBatch(
        image=torch.randint(256, (images, 3, SIDE, SIDE), generator=draw).to(torch.uint8),
        content_hw=torch.tensor([[SIDE, 60]] * images),
        boxes_xyxy_px=boxes.float(),
        classes=torch.arange(objects) % 3,
        masks=masks,
        objects_per_image=counts,
        valid=torch.ones(images, dtype=torch.bool),
        sample_key=torch.arange(images) * 977 + 5,
        key=tuple(map(str, range(images))),
    )


def part(whole: DetectionBatch, number: int) -> DetectionBatch:
    """One image of a batch."""
    first = sum(whole.objects_per_image[:number])
    own, one = slice(first, first + whole.objects_per_image[number]), slice(number, number + 1)
    return replace(
        whole,
        image=whole.image[one],
        content_hw=whole.content_hw[one],
        boxes_xyxy_px=whole.boxes_xyxy_px[own],
        classes=whole.classes[own],
        masks=whole.masks[own],
        objects_per_image=whole.objects_per_image[one],
        valid=whole.valid[one],
        sample_key=whole.sample_key[one],
        key=whole.key[one],
    )


def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector(small_config())
    for layer in (model.box_head.cls_score, model.box_head.bbox_pred, model.mask_head.predictor):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


def losses_of(model: Detector, images: DetectionBatch) -> DetectionLosses:
    maps, anchors = model.encode(images.image, images.content_hw, images.sample_key)
    return sampled_losses(model, maps, anchors, images)


def encoded(box: list[float], target: list[float], weights: tuple[float, ...]) -> Tensor:
    """Deltas of a box to its target, as in Faster R-CNN."""
    w, h = box[2] - box[0], box[3] - box[1]
    tw, th = target[2] - target[0], target[3] - target[1]
    dx = ((target[0] + target[2]) - (box[0] + box[2])) / 2 / w
    dy = ((target[1] + target[3]) - (box[1] + box[3])) / 2 / h
    deltas = torch.tensor([dx, dy, torch.tensor(tw / w).log(), torch.tensor(th / h).log()])
    return deltas * torch.tensor(weights)


@torch.no_grad()
def reference(model: Detector, image: DetectionBatch) -> list[float]:
    """The five losses of one image, box by box, on the sets that its key draws."""
    config, regions = model.config.proposals, model.config.regions
    maps, anchors = model.encode(image.image, image.content_hw)
    [found] = split_objects(image.boxes_xyxy_px, image.classes, image.masks,
                            image.objects_per_image)  # fmt: skip
    truth = found.boxes_xyxy_px
    matches = torch.full((len(anchors.anchors),), BACKGROUND)
    if len(truth):
        iou = box_iou(truth, anchors.anchors)
        for n in range(len(matches)):
            best = int(iou[:, n].argmax())
            own = bool((iou[:, n] == iou.amax(1)).any())  # an object's best anchor
            value = float(iou[best, n])
            matches[n] = best if own or value >= 0.7 else (-2 if value >= 0.3 else -1)
    chosen = sample_matches(matches, image.sample_key[0], config.sampled, 0.5, "sampled-anchors")
    objectness = box = 0.0
    for n in chosen.tolist():
        logit, label = anchors.logits[0, n], float(matches[n] >= 0)
        objectness += float(F.binary_cross_entropy_with_logits(logit, torch.tensor(label)))
        if label:
            target = encoded(anchors.anchors[n].tolist(), truth[matches[n]].tolist(), (1,) * 4)
            box += float((anchors.deltas[0, n] - target).abs().sum())
    [boxes] = propose(anchors, image.content_hw, config, config.before_nms_training)
    boxes = torch.cat([boxes, truth])
    matches = torch.full((len(boxes),), BACKGROUND)
    for n in range(len(boxes)):
        if len(truth) and float((iou := box_iou(truth, boxes[n : n + 1])[:, 0]).max()) >= 0.5:
            matches[n] = int(iou.argmax())
    chosen = sample_matches(matches, image.sample_key[0], regions.sampled, 0.25, "sampled-regions")
    classification = region = mask = 0.0
    foreground = 0
    for n in chosen.tolist():
        one = torch.cat([torch.zeros(1), boxes[n]])[None]
        level = int((2 + ((boxes[n, 2:] - boxes[n, :2]).prod().sqrt() / 224).log2()).floor())
        features, scale = maps[max(0, min(3, level))], 2.0 ** -(2 + max(0, min(3, level)))
        logits, deltas = model.box_head(roi_align(features, one, 7, scale, 0, True))
        label = 3 if matches[n] < 0 else int(found.classes[matches[n]])
        classification -= float(logits.log_softmax(-1)[0, label])
        if label == 3:
            continue
        foreground += 1
        target = encoded(boxes[n].tolist(), truth[matches[n]].tolist(), (10, 10, 5, 5))
        region += float((deltas[0, label] - target).abs().sum())
        drawn = model.mask_head(roi_align(features, one, 14, scale, 0, True))[0, label]
        bitmap = found.masks[matches[n]].float()[None, None]
        inside = roi_align(bitmap, one, 28, 1.0, 0, True)[0, 0] >= 0.5
        mask += float(F.binary_cross_entropy_with_logits(drawn, inside.float()))
    count = len(chosen)
    return [
        objectness / config.sampled, box / config.sampled,
        classification / count, region / count, mask / max(foreground, 1),
    ]  # fmt: skip


def test_losses_are_those_of_a_plain_loop_over_images() -> None:
    """Detectron2's normalisers on one image a GPU; an image without objects has no mask loss."""
    model, images = detector().eval(), batch()
    expected = torch.tensor([reference(model, part(images, n)) for n in range(3)])
    assert expected[:, 0].min() > 0
    assert expected[0].min() > 0
    assert expected[1, [1, 3, 4]].tolist() == [0, 0, 0]
    with torch.no_grad():
        losses = losses_of(model, images)
        measured = torch.stack([
            losses.rpn_objectness, losses.rpn_box, losses.classification, losses.box, losses.mask
        ])  # fmt: skip
    torch.testing.assert_close(measured, expected.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total, measured.sum())


def gradient(model: Detector, total: Tensor) -> Tensor:
    gradients = torch.autograd.grad(total, list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def test_gradient_is_the_mean_of_the_images_own() -> None:
    """With an image without objects, one that is not valid, and a box without an area."""
    model = Detector(small_config(drop_path=0.5))
    images = batch((2, 0, 3, 1))
    images = replace(images, valid=torch.tensor([True, True, True, False]))
    images.boxes_xyxy_px[1, 2] = images.boxes_xyxy_px[1, 0]
    whole = gradient(model, losses_of(model, images).total)
    alone = [gradient(model, losses_of(model, part(images, n)).total) for n in range(3)]
    mean = torch.stack(alone).mean(0)
    assert float((whole - mean).norm() / mean.norm()) < 1e-6
    assert not gradient(model, losses_of(model, part(images, 3)).total).any()


def test_an_objects_best_anchors_are_its_own_and_nothing_matches_no_object() -> None:
    model, images = detector(), batch((1, 0))
    _, anchors = model.encode(images.image, images.content_hw)
    one, none = split_objects(images.boxes_xyxy_px, images.classes, images.masks, (1, 0))
    matches = match_anchors(anchors.anchors, one, 0.99, 0.3)
    assert bool((matches == 0).any())
    assert int(matches[box_iou(one.boxes_xyxy_px, anchors.anchors)[0].argmax()]) == 0
    assert bool((match_anchors(anchors.anchors, none, 0.7, 0.3) == BACKGROUND).all())


def test_samples_are_foreground_first_up_to_its_share_and_depend_on_the_key() -> None:
    matches = torch.tensor([-1] * 50 + [0] * 30 + [-2] * 20)
    key = torch.tensor(77)
    drawn = sample_matches(matches, key, 40, 0.25, "test")
    assert (matches[drawn] == 0).sum() == 10
    assert (matches[drawn] == -1).sum() == 30
    assert len(set(drawn.tolist())) == 40
    assert torch.equal(drawn, sample_matches(matches, key, 40, 0.25, "test"))
    assert not torch.equal(drawn, sample_matches(matches, key + 1, 40, 0.25, "test"))
    few = sample_matches(matches[50:], key, 40, 0.25, "test")
    assert matches[50:][few].tolist() == [0] * 10


@pytest.mark.parametrize("count", [0, 2])
def test_boxes_without_an_area_are_dropped(count: int) -> None:
    images = batch((2,))
    images.boxes_xyxy_px[:count, 3] = images.boxes_xyxy_px[:count, 1]
    [objects] = split_objects(images.boxes_xyxy_px, images.classes, images.masks, (2,))
    assert len(objects.classes) == len(objects.masks) == 2 - count
    assert losses_of(detector(), images).total.isfinite()
