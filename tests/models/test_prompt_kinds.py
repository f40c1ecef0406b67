import pytest

from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs

RELEASED = PromptEncoderConfig(max_points=6)
INTERACTIVE = PromptEncoderConfig(negative_clicks=True, mask_prompts=True, max_points=None)


@pytest.mark.parametrize(
    ("needs", "unmet"),
    [
        (PromptNeeds(points=6), None),
        (
            PromptNeeds(points=7),
            "makes prompts of 7 points (a box counts as two), more than the 6 that ours takes",
        ),
        (PromptNeeds(negative_clicks=True), "needs negative clicks, which ours does not know"),
        (
            PromptNeeds(points=7, negative_clicks=True, mask_prompts=True),
            "needs negative clicks and mask prompts, which ours does not know",
        ),
    ],
)
def test_unmet_needs_are_named_with_the_model(needs: PromptNeeds, unmet: str | None) -> None:
    assert unmet_needs(RELEASED, needs, "ours") == unmet
    assert unmet_needs(INTERACTIVE, needs) is None
