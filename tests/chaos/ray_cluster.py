"""A Ray cluster of this machine's cores, in a process of its own: a launcher that is killed leaves it standing."""

import os
import subprocess
import sys
from collections.abc import Mapping

_CODE = """
import logging, ray, sys
with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


class RayCluster:
    """The cluster; `environment` is what a launcher joins it by. Its workers have the environment given here."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.environment = {"RAY_ADDRESS": self._process.stdout.readline().strip()}

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=60)
