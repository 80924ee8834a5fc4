#!/usr/bin/env bash
# Trains on a Cloud TPU slice: copies this repository to every host, installs the requirements, and starts the run.
# usage: launch/tpu_pod.sh NAME ZONE CONFIG WORKDIR [--config.FIELD=VALUE ...]   the same WORKDIR again continues it
#   NAME, ZONE     name and zone of an existing slice (gcloud compute tpus tpu-vm create)
#   WORKDIR        on a disk that all hosts mount (Filestore, a bucket by GCS FUSE), under the same path
#   FOLDER=dollar_jax     the repository's copy, a path below the home folder of each host
#   PYTHON=3.13           the version of Python, fetched if the host has an older one
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."

name=$1 zone=$2
folder=${FOLDER:-dollar_jax} version=${PYTHON:-3.13}
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
# What git tracks, and what it does not ignore, as your own losses. Weights and workdirs in the folder stay here.
git ls-files -z --cached --others --exclude-standard |
  { xargs -0 stat --printf '%s %n\0' -- 2>/dev/null || true; } | # a deleted file has no size
  while read -rd '' size file; do
    if [ "$size" -gt 10000000 ]; then
      echo "left out, larger than 10 MB: $file" >&2
    else
      printf '%s\0' "$file"
    fi
  done | tar --null --no-recursion --files-from=- -czf "$archive"
echo "copying the repository to every host of $name"
gcloud compute tpus tpu-vm scp "$archive" "$name:$folder.tar.gz" --zone="$zone" --worker=all
echo "installing requirements there"
on_all "set -e
  mkdir -p $folder
  tar -xzf $folder.tar.gz -C $folder
  cd $folder
  python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || python3 -m uv venv --quiet --python $version .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]'"

# Detached, so that the run outlives the connection.
flags=$(printf ' %q' --config="$3" --workdir="$4" "${@:5}")
on_all "cd $folder; nohup .venv/bin/python -m dollar_jax.main$flags >> run.log 2>&1 < /dev/null &
  echo \$! > run.pid"
first="gcloud compute tpus tpu-vm ssh $name --zone=$zone --worker=0"
echo "started. To follow it:  $first --command='tail -f $folder/run.log'"
echo "To save and stop it:    $first --command='kill \$(cat $folder/run.pid)'"
