#!/usr/bin/env bash
# Train on a generated text file far larger than what the process may hold, and watch its resident memory: after the
# first minute it must stay flat.
#   scripts/stream-memory.sh [GIGABYTES [SECONDS]]
set -euo pipefail
cd "$(dirname "$0")/.."
maquette=${MAQUETTE_BIN:-target/release/maquette}
gigabytes=${1:-4}
seconds=${2:-240}
work=$(mktemp -d)
trap '[ -z "${pid:-}" ] || { kill -KILL $pid; wait $pid; } 2>/dev/null || true; rm -rf "$work"' EXIT

echo "writing $gigabytes GB of text"
awk 'BEGIN { srand(1); for (i = 0; i < 200000; i++) printf "%d %s walks to the %d hills and counts %d stones.\n", i, (rand() < .5) ? "Ada" : "Bo", rand() * 1000, rand() * 1e6 }' > "$work/piece"
size=$(stat -c %s "$work/piece")
for _ in $(seq $((gigabytes * 1000000000 / size + 1))); do cat "$work/piece"; done > "$work/text.txt"
ls -lh "$work/text.txt" | awk '{ print "text.txt", $5 }'

"$maquette" train stories-streaming --data "$work/text.txt" --set data.source=path --set train.steps=1000000 \
  --set train.checkpoint_every=100 --set train.validate_every=100 --out "$work/run" -q &
pid=$!
for second in $(seq 5 5 "$seconds"); do
  sleep 5
  rss=$(awk '/VmRSS/ { print $2 }' "/proc/$pid/status")
  echo "$second $rss" >> "$work/rss"
done
awk '{ printf "%4d s  %7.1f MB\n", $1, $2 / 1024 }' "$work/rss" | awk 'NR % 4 == 0'
awk '$1 >= 60 { if (!low || $2 < low) low = $2; if ($2 > high) high = $2 }
     END { spread = (high - low) / low * 100; printf "after the first minute: %.1f to %.1f MB, %.2f %% apart\n", low / 1024, high / 1024, spread; exit spread > 5 }' "$work/rss"
