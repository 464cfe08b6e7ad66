#!/usr/bin/env bash
# Build the binary with each GPU back end and, where such a device answers, run a short recipe on it.
# Not part of continuous integration: it needs the hardware.
#   scripts/check-devices.sh [cuda] [wgpu]
set -euo pipefail
cd "$(dirname "$0")/.."
backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(cuda wgpu)
for backend in "${backends[@]}"; do
  echo "== $backend: build"
  cargo build --release -p maquette --features "$backend"
  echo "== $backend: train"
  if target/release/maquette train stories --steps 50 --device "$backend" --out "$(mktemp -d)/run"; then
    echo "== $backend: works"
  else
    echo "== $backend: no such device here, or it failed (see above)"
  fi
done
