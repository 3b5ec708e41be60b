#!/bin/bash
# A Ray cluster by hand: the first machine is the head, the others join it. The same environment, data set and out=
# must be there on all of them, on a shared file system say, and the head's ~/.ray/auth_token (made by
# `ray get-auth-token --generate`). Cores and GPUs are found by Ray.
#   head:          bash configs/ray/cluster.sh head
#   every other:   bash configs/ray/cluster.sh 10.0.0.1      the head's address
#   then, on the head:
#                  python launchers/ablate.py sweep=... shards=... out=...
#   at the end, on each:
#                  ray stop
set -e
if [ "$1" = head ]; then
  exec ray start --head --port=6379 --include-dashboard=false --disable-usage-stats
fi
exec ray start --address="${1:?head, or the address of the head}:6379" --disable-usage-stats
