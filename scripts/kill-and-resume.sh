#!/usr/bin/env bash
# Kill a training run with SIGKILL at random moments, resume it each time, and compare the final weights with those
# of a run that was never killed. They must be the same bytes.
#   scripts/kill-and-resume.sh [ROUNDS] [RECIPE [TRAIN OPTIONS...]]
# Without a recipe: one of each family, on built-in data.
set -euo pipefail
cd "$(dirname "$0")/.."
maquette=${MAQUETTE_BIN:-target/release/maquette}
rounds=${1:-20}
shift || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # name, train arguments...
  local name=$1; shift
  local seconds kills=0
  seconds=$(date +%s%N)
  "$maquette" train "$@" --out "$work/$name-whole" -q > /dev/null
  seconds=$(( ($(date +%s%N) - seconds) / 1000000 ))
  for round in $(seq "$rounds"); do
    local run="$work/$name-$round"
    # A moment within the whole run, start-up and final evaluation included.
    local moment=$(( (RANDOM * 32768 + RANDOM) % seconds ))
    "$maquette" train "$@" --out "$run" -q >/dev/null 2>&1 &
    local pid=$!
    sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
    kill -KILL $pid 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null || true
    if [ -f "$run/recipe.toml" ]; then
      "$maquette" train --resume "$run" -q >/dev/null
    else # killed before the run folder was complete: nothing to resume, begin again
      rm -rf "$run"; "$maquette" train "$@" --out "$run" -q >/dev/null
    fi
    cmp "$work/$name-whole/model.safetensors" "$run/model.safetensors" || { echo "FAIL $name: round $round, killed at ${moment} ms"; exit 1; }
    rm -rf "$run"
  done
  echo "ok   $name: $rounds rounds, $kills kills, all byte-identical"
}

if [ $# -gt 0 ]; then
  check "${1##*/}" "$@"
else
  text=(--steps 40 --set train.checkpoint_every=10 --set data.count=500)
  images=(--set data.glyphs.per_class=50 --set sample.count=1)
  check gpt stories "${text[@]}"
  check gpt-streaming stories-streaming "${text[@]}"
  check vae vae-glyphs --steps 40 --set train.checkpoint_every=10 --set data.glyphs.per_class=50 --set evaluate.samples=0 \
    --set evaluate.importance_samples=0
  check diffusion glyphs --steps 20 --set train.checkpoint_every=5 "${images[@]}" --set evaluate.samples=0
  check cyclegan cyclegan-glyphs --steps 20 --set train.checkpoint_every=5 --set data.glyphs.per_class=20 \
    --set evaluate.judge_steps=0
fi
