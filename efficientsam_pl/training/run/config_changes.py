"""Compare the configs of a run before and after a resume, by the policy of each changed key.

The policies stand on the config's fields: see `config.fields.on_resume`.
"""

from collections.abc import Mapping
from typing import Any

from efficientsam_pl.config.diff import diff, join_first
from efficientsam_pl.config.fields import ResumePolicy, resume_policy

_MOST_LISTED = 5
_ABSENT = object()


def changes(
    root: type[Any], before: Mapping[str, Any], now: Mapping[str, Any], policy: ResumePolicy
) -> list[str]:
    """List the changed keys of a policy, as `optim.peak_lr was 0.0004, now 0.0002`.

    A key that only `now` has is new in this program, and no change.

    Args:
        root: The config's class.
        before: The stored config as plain values.
        now: This run's.
        policy: Keys of other policies are left out.
    """
    return [
        f"{key} was {_text(old)}, now {_text(new)}"
        for key, old, new in diff(before, now, absent=_ABSENT)
        if old is not _ABSENT and resume_policy(root, key) == policy
    ]


def one_line(differences: list[str]) -> str:
    """Join the first few of them, and count the others."""
    return join_first(differences, _MOST_LISTED)


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    return "null" if value is None else str(value)
