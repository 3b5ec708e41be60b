#!/usr/bin/env bash
# Packs what `python -m tests.benchmarks.gpu` needs on a machine with a GPU and no network: wheels for Python 3.12,
# images, weights; in parts of at most 56 MiB that are carried one by one. Then prints the calls to make.
#
# usage: [PEERS="litdata spdl"] tests/benchmarks/gpu_pack.sh BARCELONA MUNICH [OUT=build/gpu] [WEIGHTS]
#   PEERS              loaders to compare with beside torch's and webdataset's, of these two (litdata: 18 MB)
#   BARCELONA MUNICH   the two public sets, as downloaded
#   WEIGHTS            a file of timm's weights for the last part's classifier (legacy_senet154, say)
#
# The machine has torch, torchvision, timm, accelerate, torchmetrics and what comes with them already.
set -euo pipefail
cd "$(dirname "$0")/../.."
barcelona=$1 munich=$2 out=${3:-build/gpu} weights=${4:-}
python=${PYTHON:-python}

# What the command imports beside them. Left out: libraries that DALI loads only for TIFF, JPEG 2000 and inflating.
packages=(
  nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 nvidia-nvjpeg astunparse gast optree
  hydra-core omegaconf imagehash pywavelets torch-fidelity torchstain webdataset braceexpand
)
for peer in ${PEERS:-}; do
  case $peer in
    # The clients of cloud stores are imported whatever it reads; obstore and tifffile are not.
    litdata) packages+=(
      litdata boto3 botocore s3transfer jmespath python-dateutil six requests urllib3 certifi idna charset-normalizer
    ) ;;
    spdl) packages+=(spdl-core) ;;
    *) echo "gpu_pack.sh: PEERS=$peer: use litdata, spdl or both" >&2; exit 2 ;;
  esac
done
# antlr4-python3-runtime comes as source only.
from_source=(antlr4-python3-runtime)
platforms=()
for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)

rm -rf "$out"/part-* "$out"/packed
mkdir -p "$out"/packed/wheels
# The product's versions, and of what only other loaders need the versions of their environment.
"$python" - > "$out"/constraints.txt <<'PY'
import tomllib
with open("tests/benchmarks/peers/requirements.txt") as file:
    pins = dict(line.strip().split("==") for line in file if "==" in line)
with open("pyproject.toml", "rb") as file:
    pins |= dict(pin.split("==") for pin in tomllib.load(file)["tool"]["uv"]["constraint-dependencies"])
print("\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))
PY
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --constraint "$out"/constraints.txt --dest "$out"/packed/wheels "${packages[@]}"
"$python" -m pip wheel --quiet --no-deps --constraint "$out"/constraints.txt --wheel-dir "$out"/packed/wheels \
  "${from_source[@]}"

# Made once: it takes a minute.
if [ ! -d "$out"/data ]; then
  "$python" -m tests.benchmarks.gpu.data barcelona="$barcelona" munich="$munich" out="$out"/data.partial
  mv "$out"/data.partial "$out"/data
fi
cp -r "$out"/data "$out"/packed/data
if [ -n "$weights" ]; then cp "$weights" "$out"/packed/weights.safetensors; fi

# Wheels and JPEG files are compressed already.
tar -C "$out"/packed -cf - . | split --bytes=56M --numeric-suffixes=1 --suffix-length=1 - "$out"/part-
rm -r "$out"/packed
count=$(ls "$out"/part-* | wc -l)
for part in "$out"/part-*; do mv "$part" "$part-of-$count"; done
ls -l "$out"/part-*

given="out=\$OUT data=/tmp/gpu/data work=/tmp/gpu/work minutes=8.5"
if [ -n "$weights" ]; then given+=" weights=/tmp/gpu/weights.safetensors"; fi
echo
echo "The calls to make on the machine, one after the other, in a copy of this repository there:"
for part in "$out"/part-*; do
  echo
  echo "carry $part:"
  if [ "$part" = "$out/part-$count-of-$count" ]; then
    echo "  unset PYTHONDONTWRITEBYTECODE; export PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/gpu/site:."
    echo "  mkdir -p /tmp/parts && cp $part /tmp/parts/ && bash tests/benchmarks/gpu_unpack.sh /tmp/parts /tmp/gpu &&"
    echo "  python3 -m tests.benchmarks.gpu $given"
  else
    echo "  mkdir -p /tmp/parts && cp $part /tmp/parts/"
  fi
done
echo
echo "What came back from \$OUT, copied into \$OUT of a later call before the command, is not measured again."
