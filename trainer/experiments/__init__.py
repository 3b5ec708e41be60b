"""Many launches as one experiment: stages that are shared, arms that are compared, trials under Ray Tune."""

import os

# Under `uv run` Ray would have its processes in an environment of their own, which lacks this project. It looks when it
# is imported, which every module here does after this.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
