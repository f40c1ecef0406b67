"""Train small Segment Anything models."""
