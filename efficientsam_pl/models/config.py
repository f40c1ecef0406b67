"""Model configs, without torch. The defaults are the released EfficientSAM-Ti."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from efficientsam_pl.config.fields import free, path


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A ViT image encoder and its neck.

    `vit`: EfficientSAM's plain ViT, global attention, position embeddings from pretraining.
    `sam_vit`: SAM's encoder, windows and relative positions (SAM, appendix A; ViTDet).
    """

    kind: Literal["vit", "sam_vit"] = "vit"
    width: int = 192  # ViT-Ti
    depth: int = 12
    heads: int = 3
    image_size: int = 1024  # pixels per side; EfficientSAM 4.1
    patch_size: int = 16
    position_grid: int = 14  # tokens per side in pretraining: 224 / 16
    class_token: bool = False  # whether a class token runs through the blocks
    neck_channels: int = 256
    attention: Literal["fused", "explicit"] = "fused"
    # For vit: global attention in all blocks, as released, or only in global_blocks, with windows
    # in the others (EfficientTAM windows 8 of 12). sam_vit always uses global_blocks.
    global_attention: Literal["all", "listed"] = "all"
    window: int = 14  # tokens per side
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)  # blocks with global attention
    # For vit: decomposed: every block adds learned terms of the vertical and the horizontal
    # distance of two tokens to their attention (ViTDet); zero at initialisation. sam_vit has them
    relative_positions: Literal["none", "decomposed"] = "none"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}"
            )
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1")
        beyond = [block for block in self.global_blocks if not 0 <= block < self.depth]
        if self.global_attention == "listed" and beyond:
            raise ValueError(
                f"global_blocks={list(self.global_blocks)} must be below depth={self.depth}"
            )
        if self.class_token and self.global_attention == "listed":
            raise ValueError(
                "class_token=true needs global_attention=all, not listed: it has no window"
            )
        if self.class_token and self.relative_positions != "none":
            raise ValueError(
                f"class_token=true needs relative_positions=none, not {self.relative_positions}: "
                "it has no place on the grid"
            )

    def grid(self) -> int:
        """Return the tokens per side at `image_size`."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig:
    """Supported prompt types and the padding of the point tokens."""

    negative_clicks: bool = False  # the released EfficientSAM has no embedding for them
    mask_prompts: bool = False
    drawn_prompts: bool = False  # rasterised clicks and boxes as well; neither release has them
    max_points: int | None = 6  # a box counts as two; None: unlimited, as in SAM
    # Shorter prompts are padded to this length. None: max_points, as released. With min_points=6
    # and a higher max_points, prompts of up to six points give the released model's outputs.
    min_points: int | None = None
    padding_position: Literal["kept", "zeroed"] = "kept"  # SAM zeroes it before its embedding
    # Standard deviation of the random Fourier frequencies at initialisation; SAM: 1. Points further
    # apart than about 0.08 / scale of the image side have nearly uncorrelated encodings.
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.min_points is not None and not 0 < self.min_points <= (self.max_points or 0):
            raise ValueError(
                f"min_points={self.min_points} must lie in [1, max_points={self.max_points}]"
            )

    def padded_length(self) -> int:
        """Return the length that shorter prompts are padded to; 0: no padding."""
        return (self.max_points or 0) if self.min_points is None else self.min_points


@dataclass(frozen=True, kw_only=True)
class MaskDecoderConfig:
    """SAM's mask decoder (SAM, appendix A)."""

    candidates: int = 3  # mask tokens 1..3; token 0 is the single mask
    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    iou_head_width: int = 256
    activation: Literal["gelu", "relu"] = "gelu"  # SAM: relu
    upscaling_norm: Literal["group_norm", "layer_norm"] = "group_norm"  # SAM: layer_norm
    # Position encoding in the tokens' self-attention. summed: added to the tokens, so to values and
    # residual too. queries_and_keys (SAM): added to queries and keys only, and the first block's
    # self-attention has no residual.
    token_position: Literal["summed", "queries_and_keys"] = "summed"

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """A promptable segmenter: image encoder, prompt encoder, mask decoder, resize rule."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    prompts: PromptEncoderConfig = field(default_factory=PromptEncoderConfig)
    decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    resize: Literal["squash", "pad"] = "squash"
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet, of 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if self.encoder.neck_channels % (2 * self.decoder.heads):
            raise ValueError(
                f"encoder.neck_channels={self.encoder.neck_channels} must be a multiple of "
                f"2 * decoder.heads={2 * self.decoder.heads}"
            )


_EFFICIENT_SAM = SegmenterConfig()
_SAM = SegmenterConfig(
    encoder=EncoderConfig(
        kind="sam_vit", width=768, depth=12, heads=12, position_grid=64, global_blocks=(2, 5, 8, 11)
    ),
    prompts=PromptEncoderConfig(
        negative_clicks=True, mask_prompts=True, max_points=None, padding_position="zeroed"
    ),
    decoder=MaskDecoderConfig(
        activation="relu", upscaling_norm="layer_norm", token_position="queries_and_keys"
    ),
    resize="pad",
)

_SMALL = replace(_EFFICIENT_SAM, encoder=replace(_EFFICIENT_SAM.encoder, width=384, heads=6))
# Beyond the released layout: negative clicks, mask prompts, and room for a box and ten clicks
_INTERACTIVE = PromptEncoderConfig(
    negative_clicks=True, mask_prompts=True, max_points=12, min_points=6
)

NAMED: dict[str, SegmenterConfig] = {
    "efficient_sam_ti": _EFFICIENT_SAM,
    "efficient_sam_s": _SMALL,
    "efficient_sam_ti_interactive": replace(_EFFICIENT_SAM, prompts=_INTERACTIVE),
    "efficient_sam_s_interactive": replace(_SMALL, prompts=_INTERACTIVE),
    "sam_vit_b": _SAM,
    "sam_vit_l": replace(
        _SAM,
        encoder=replace(
            _SAM.encoder, width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)
        ),
    ),
    "sam_vit_h": replace(
        _SAM,
        encoder=replace(
            _SAM.encoder, width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher whose features are the target: frozen SAM (paper, 3.2), or a baseline.

    `sam`: SAM's image encoder. `timm`: the patch tokens of a timm ViT (CLIP: ablation of 4.4).
    `pixels`: no teacher; the target is each patch's normalised pixels (MAE, 3).
    """

    kind: Literal["sam", "timm", "pixels"] = "sam"
    encoder: EncoderConfig = field(default_factory=lambda: NAMED["sam_vit_h"].encoder)  # sam
    timm_name: str = "vit_base_patch16_clip_224"  # timm
    # a released checkpoint; None: seeded random weights
    weights: str | None = path(None, resume="logged")
    seed: int = 0  # for random weights
    # Eq. 1 of the paper gives teacher and student the same N tokens, which suggests the student's
    # size; at 1024 SAM sees its training resolution and its features are resized to the grid.
    image_size: int = 224
    output: Literal["neck", "trunk"] = "neck"  # sam; 3.2: the encoder's output, 256 channels
    precision: Literal["bf16", "fp32"] = free("bf16")  # weights and compute
    batch: int | None = free(None)  # images per forward; None: 256 at 224 pixels, 12 at 1024
    # sharded: with trainer.strategy=fsdp
    sharding: Literal["replicated", "sharded"] = free("replicated")
    # on a GPU beside the student's encoder, which takes the memory of the teacher's activations
    overlap: bool = free(False)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size():
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of the teacher's patches of "
                f"{self.patch_size()} pixels"
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1")
        if self.overlap and self.sharding == "sharded":
            raise ValueError("overlap=true needs sharding=replicated, which is sharded")
        if self.kind == "pixels" and self.weights is not None:
            raise ValueError(f"weights={self.weights} has no meaning with kind=pixels")

    def patch_size(self) -> int:
        """Return the pixels per side of a patch; for timm it is parsed from the model's name."""
        if self.kind != "timm":
            return self.encoder.patch_size
        match = re.search(r"patch(\d+)", self.timm_name)
        if match is None:
            raise ValueError(f"timm_name={self.timm_name} must contain its patch size, as patch16")
        return int(match[1])

    def grid(self) -> int:
        """Return the teacher's tokens per side."""
        return self.image_size // self.patch_size()

    def chunk_size(self) -> int:
        """Return the images per forward; by default as many pixels as 256 images of 224."""
        return self.batch or max(1, 256 * 224**2 // self.image_size**2)


@dataclass(frozen=True, kw_only=True)
class SamiConfig:
    """SAMI (paper, 3.2 and 4.1). Keys without a section number are left open by the paper."""

    student: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=224))
    mask_ratio: float = 0.75  # 4.1
    positions: Literal["learned", "fixed"] = "learned"  # the released positions are a parameter
    encoder_norm: Literal["none", "layer_norm"] = "none"  # the released encoder ends without one
    # cross_attention: the paper's (3.2), updates only the masked tokens. self_attention: MAE's,
    # updates all tokens; about 3 points worse (4.4)
    decoder: Literal["cross_attention", "self_attention"] = "cross_attention"
    decoder_depth: int = 8  # 4.1
    decoder_width: int = 512  # 4.1
    decoder_heads: int = 16  # MAE's

    def __post_init__(self) -> None:
        if self.student.kind != "vit":
            raise ValueError(f"student.kind={self.student.kind}: SAMI masks a plain vit only")
        if self.student.global_attention != "all":
            raise ValueError(
                f"student.global_attention={self.student.global_attention} must be all: windows "
                "have no meaning where most tokens are masked"
            )
        if self.student.relative_positions != "none":
            raise ValueError(
                f"student.relative_positions={self.student.relative_positions} must be none: they "
                "need the whole grid"
            )
        if not 0 < self.visible_tokens() < self.student.grid() ** 2:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} leaves {self.visible_tokens()} of "
                f"{self.student.grid() ** 2} tokens visible; some must be visible and some masked"
            )
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth={self.decoder_depth} must be at least 1")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width={self.decoder_width} must be a multiple of "
                f"decoder_heads={self.decoder_heads}"
            )

    def visible_tokens(self) -> int:
        """Return the number of tokens that the student encoder sees."""
        return int(self.student.grid() ** 2 * (1 - self.mask_ratio))


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """Modules whose weights stay frozen."""

    image_encoder: bool = False
    prompt_encoder: bool = False
    mask_decoder: bool = False

    def __post_init__(self) -> None:
        if all(vars(self).values()):
            raise ValueError("mask_decoder=true with the other two leaves nothing to train")

    def parts(self) -> tuple[str, ...]:
        """Return the names of the frozen modules."""
        return tuple(name for name, frozen in vars(self).items() if frozen)


@dataclass(frozen=True, kw_only=True)
class LoadedModelConfig:
    """A trained segmenter."""

    # efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h}, or a YAML file in
    # SegmenterConfig's form; None: read from the weights file
    name: str | None = path(None)
    weights: str | None = path(None)  # released, or in our format


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The segmenter, the source of its initial weights, and its frozen modules."""

    # efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h}, or a YAML file in
    # SegmenterConfig's form
    name: str = path("efficient_sam_ti", resume="logged")
    # whole model: released, or in our format
    weights: str | None = path(None, resume="logged")
    # a pretrained encoder, from `efficientsam pretrain`
    encoder: str | None = path(None, resume="logged")
    # a segmenter that gives prompt encoder and mask decoder
    decoder: str | None = path(None, resume="logged")
    freeze: FreezeConfig = field(default_factory=FreezeConfig)

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            file = getattr(self, name)
            if self.weights and file:
                raise ValueError(
                    f"weights={self.weights} holds the {name} already; drop it or {name}={file}"
                )

    def sources(self) -> dict[str, str | None]:
        """Map each module to the file of its initial weights; None: random initialisation."""
        decoder = self.weights or self.decoder
        return {
            "image_encoder": self.weights or self.encoder,
            "prompt_encoder": decoder,
            "mask_decoder": decoder,
        }
