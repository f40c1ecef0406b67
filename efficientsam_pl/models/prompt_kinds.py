"""Check whether a model supports the prompts that a command will give it. Imports no torch."""

from dataclasses import dataclass

from efficientsam_pl.models.config import PromptEncoderConfig


@dataclass(frozen=True, kw_only=True)
class PromptNeeds:
    """Prompt features that a model must support. A box counts as two points."""

    points: int = 0  # in the longest prompt
    negative_clicks: bool = False
    mask_prompts: bool = False


def unmet_needs(
    known: PromptEncoderConfig, needs: PromptNeeds, model: str = "this model"
) -> str | None:
    """Describe, as the end of a sentence, which needs a model does not meet; None if it meets all.

    Args:
        known: The model's prompt encoder.
        needs: Requirements of the prompts.
        model: The model's name in the message.
    """
    kinds = {
        "negative clicks": needs.negative_clicks and not known.negative_clicks,
        "mask prompts": needs.mask_prompts and not known.mask_prompts,
    }
    missing = " and ".join(kind for kind, is_missing in kinds.items() if is_missing)
    if missing:
        return f"needs {missing}, which {model} does not know"
    if known.max_points is not None and needs.points > known.max_points:
        return (
            f"makes prompts of {needs.points} points (a box counts as two), more than the "
            f"{known.max_points} that {model} takes"
        )
    return None
