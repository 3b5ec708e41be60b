"""How many examples a property test draws: few in the fast suite, EXAMPLES=2000 of them where they are asked for."""

import os

from hypothesis import settings

ASKED = os.environ.get("EXAMPLES")


def examples(number: int) -> settings:
    """The settings of a property test that draws `number` examples in the fast suite."""
    return settings(deadline=None, max_examples=int(ASKED or number))
