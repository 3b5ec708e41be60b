"""A clock that tests tell the time."""


class Clock:
    """Stands for the module `time` where a test decides how long things take."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic
