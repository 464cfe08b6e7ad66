#!/usr/bin/env bash
# Build tests for 64-bit ARM and run them under emulation; without arguments those of the kernels.
# Not part of continuous integration. It needs
#   rustup target add aarch64-unknown-linux-gnu
#   apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
#   scripts/check-arm.sh [cargo test's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(-p maquette-kernels)
cargo test --release --target aarch64-unknown-linux-gnu "${tests[@]}"
