#!/bin/bash
# A Ray cluster by hand: the first machine is the head, the others join it. The same environment, data set, out=
# and raw images must be there on all of them under the same paths, on a shared file system say. Cores and GPUs are found by Ray.
#   head:          bash configs/ray/cluster.sh head
#   every other:   bash configs/ray/cluster.sh 10.0.0.1      the head's address
#   then, on the head:
#                  RAY_AUTH_MODE=token python launchers/ablate.py sweep=... shards=... out=...
#                  RAY_AUTH_MODE=token python launchers/build_shards.py shards=... folder=... cluster=true
#   at the end, on each:
#                  ray stop
# What follows the first word goes to `ray start`: --block, say, which stays until Ray ends.
# Who reaches the head's port and has its token may run anything there: the head makes ~/.ray/auth_token where there is
# none. Where the machines do not share a home, copy it to each.
set -e
export RAY_AUTH_MODE=token
if [ "$1" = head ]; then
  ray get-auth-token --generate > /dev/null
  exec ray start --head --port=6379 --include-dashboard=false --disable-usage-stats "${@:2}"
fi
exec ray start --address="${1:?head, or the address of the head}:6379" --disable-usage-stats "${@:2}"
