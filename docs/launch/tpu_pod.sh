#!/usr/bin/env bash
# Trains on a TPU pod of Cloud TPU VMs: the same command on every machine, joined by --distributed.
#
#   PROJECT=... ZONE=... BUCKET=... docs/launch/tpu_pod.sh create   # a queued resource
#   PROJECT=... ZONE=... BUCKET=... docs/launch/tpu_pod.sh setup    # code and bucket on all machines
#   PROJECT=... ZONE=... BUCKET=... docs/launch/tpu_pod.sh train    # again: resumes
#   PROJECT=... ZONE=... BUCKET=... docs/launch/tpu_pod.sh stop     # saves a checkpoint first
#   PROJECT=... ZONE=... BUCKET=... docs/launch/tpu_pod.sh delete
set -euo pipefail

PROJECT=${PROJECT:?} ZONE=${ZONE:?}
BUCKET=${BUCKET:?a bucket with hierarchical namespace}
NAME=${NAME:-vidstep}
TYPE=${TYPE:-v5p-128}                 # 64 chips, 16 machines
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
WHERE=(--project="$PROJECT" --zone="$ZONE")

everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" \
      --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
    ;;
  setup)
    gcloud compute tpus tpu-vm scp --recurse . "$NAME":vidstep "${WHERE[@]}" --worker=all
    everywhere "python3 -m venv venv && venv/bin/pip install --quiet -e vidstep 'jax[tpu]' \
      && mkdir -p shared && gcsfuse --implicit-dirs $BUCKET shared"
    ;;
  train)
    everywhere "cd vidstep && JAX_COMPILATION_CACHE_DIR=\$HOME/shared/cache \
      ../venv/bin/python -m experiments.train --distributed \
      --config=configs/wan/tf_scm.py:14b,c3 \
      --config.data.path=\$HOME/shared/data/wan \
      --workdir=\$HOME/shared/runs/wan/scm"
    ;;
  stop)
    everywhere "pkill -TERM -f experiments.train || true"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
    ;;
  *)
    echo "usage: $0 create|setup|train|stop|delete" >&2
    exit 2
    ;;
esac
