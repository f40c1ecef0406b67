"""Map the parameter names of the released EfficientSAM and SAM to ours, and ours back."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

Layout = Literal["EfficientSAM", "SAM"]

_DECODER_COMMON = (
    (r"^image_encoder\.(patch_embed|pos_embed|blocks)", r"image_encoder.trunk.\1"),
    (r"output_hypernetworks_mlps\.", "hypernetworks."),
    (r"iou_prediction_head\.", "iou_head."),
)
_EFFICIENT_SAM = (
    *_DECODER_COMMON,
    (r"prompt_encoder\.invalid_points\.", "prompt_encoder.label_vectors.padding."),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.label_vectors.positive."),
    (r"prompt_encoder\.bbox_top_left_embeddings\.", "prompt_encoder.label_vectors.top_left."),
    (
        r"prompt_encoder\.bbox_bottom_right_embeddings\.",
        "prompt_encoder.label_vectors.bottom_right.",
    ),
    (r"final_output_upscaling_layers\.0\.", "upscaling."),
    (r"final_output_upscaling_layers\.1\.0\.", "upscaling.3."),
    (r"(transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.fc1."),
    (r"(transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.fc2."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.0\.0\.", r"\1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.1\.0\.", r"\1.2."),
    (r"(hypernetworks\.\d+|iou_head)\.fc\.", r"\1.4."),
)
_SAM = (
    *_DECODER_COMMON,
    (r"^image_encoder\.neck", "image_encoder.trunk.neck"),
    (r"\.mlp\.lin(\d)\.", r".mlp.fc\1."),
    (r"prompt_encoder\.not_a_point_embed\.", "prompt_encoder.label_vectors.padding."),
    (r"prompt_encoder\.point_embeddings\.0\.", "prompt_encoder.label_vectors.negative."),
    (r"prompt_encoder\.point_embeddings\.1\.", "prompt_encoder.label_vectors.positive."),
    (r"prompt_encoder\.point_embeddings\.2\.", "prompt_encoder.label_vectors.top_left."),
    (r"prompt_encoder\.point_embeddings\.3\.", "prompt_encoder.label_vectors.bottom_right."),
    (r"output_upscaling\.", "upscaling."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.0\.", r"\1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.1\.", r"\1.2."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.2\.", r"\1.4."),
)

# From our names back to those of the released EfficientSAM
_TO_EFFICIENT_SAM = (
    (r"^image_encoder\.trunk\.", "image_encoder."),
    (r"label_vectors\.padding\.", "invalid_points."),
    (r"label_vectors\.positive\.", "point_embeddings."),
    (r"label_vectors\.(top_left|bottom_right)\.", r"bbox_\1_embeddings."),
    (r"\.upscaling\.3\.", ".final_output_upscaling_layers.1.0."),
    (r"\.upscaling\.", ".final_output_upscaling_layers.0."),
    (r"\.mlp\.fc2\.", ".mlp.fc."),
    (r"(transformer\.layers\.\d+\.mlp)\.fc1\.", r"\1.layers.0.0."),
    (r"(hypernetworks\.\d+|iou_head)\.0\.", r"\1.layers.0.0."),
    (r"(hypernetworks\.\d+|iou_head)\.2\.", r"\1.layers.1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.4\.", r"\1.fc."),
    (r"\.hypernetworks\.", ".output_hypernetworks_mlps."),
    (r"\.iou_head\.", ".iou_prediction_head."),
)


def rename_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released EfficientSAM or SAM state dict to our names; ours passes unchanged."""
    layout = released_layout(state)
    if layout is None:
        return dict(state)
    rules = {"EfficientSAM": _EFFICIENT_SAM, "SAM": _SAM}[layout]
    return _renamed(state, rules)


def released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a segmenter of the released EfficientSAM's layout to the names of the release."""
    encoder = {k: v for k, v in state.items() if k.startswith("image_encoder.")}
    rest = {k: v for k, v in state.items() if k not in encoder}
    # only the mask decoder's MLPs have other names in the release, not the encoder's
    return _renamed(encoder, _TO_EFFICIENT_SAM[:1]) | _renamed(rest, _TO_EFFICIENT_SAM[1:])


def _renamed(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in compiled:
            name = pattern.sub(new, name)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def released_layout(state: Mapping[str, Tensor]) -> Layout | None:
    """Recognize a release by the name of its padding vector."""
    if "prompt_encoder.invalid_points.weight" in state:
        return "EfficientSAM"
    return "SAM" if "prompt_encoder.not_a_point_embed.weight" in state else None
