#!/usr/bin/env bash
# The counterpart of gpu_pack.sh, on the machine with the GPU: joins the parts, and installs their wheels in a folder.
#
# usage: tests/benchmarks/gpu_unpack.sh PARTS TARGET
#   TARGET/site   to be put on PYTHONPATH; TARGET/data, TARGET/weights.safetensors
set -euo pipefail
parts=$1 target=$2
python=${PYTHON:-python3}

shopt -s nullglob
found=("$parts"/part-*-of-*)
if [ ${#found[@]} -eq 0 ]; then echo "gpu_unpack.sh: no part in $parts" >&2; exit 2; fi
count=${found[0]##*-of-}
if [ ${#found[@]} -ne "$count" ]; then
  echo "gpu_unpack.sh: ${#found[@]} of $count parts in $parts: carry the others too" >&2
  exit 2
fi
mkdir -p "$target"
cat "${found[@]}" | tar -C "$target" -xf -
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$target"/site \
  "$target"/wheels/*.whl
# Two wheels bring their tests along, in a package of the name that this project's tests have.
rm -rf "$target"/site/tests
