import torch

from efficientsam_pl.prompts.boxes import jitter_boxes


def test_jitter_by_hand() -> None:
    boxes = torch.tensor([[10.0, 20.0, 29.0, 59.0]])  # 20 wide, 40 high
    noise = torch.tensor([[1.0, -1.0, 0.5, 2.0]])
    moved = jitter_boxes(boxes, noise, share=0.1, most_px=6.0, side=64)
    torch.testing.assert_close(moved, torch.tensor([[12.0, 16.0, 30.0, 63.0]]))  # 65 clamped


def test_sides_that_cross_are_put_in_order_and_stay_inside() -> None:
    boxes = torch.tensor([[10.0, 10.0, 12.0, 12.0], [0.0, 0.0, 63.0, 63.0]])
    noise = torch.tensor([[9.0, 0.0, -9.0, 0.0], [-9.0, -9.0, 9.0, 9.0]])
    moved = jitter_boxes(boxes, noise, share=1.0, most_px=20.0, side=64)
    torch.testing.assert_close(
        moved, torch.tensor([[0.0, 10.0, 30.0, 12.0], [0.0, 0.0, 63.0, 63.0]])
    )
