#!/bin/bash
# Builds rublk, one of the programs twinblk is measured against, and prints the directory it is in (for `lab run --bin`).
# It is kept in the lab's cache. The version is pinned so that measurements stay comparable.
set -euo pipefail

VERSION=0.2.15
CACHE=${TWINBLK_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/twinblk-lab}
ROOT=$CACHE/rublk-$VERSION

say() { printf 'rublk: %s\n' "$*" >&2; }

# Its build generates bindings and needs libclang.
install_libclang() {
    dpkg-query -W -f '${Status}' libclang-dev 2> /dev/null | grep -q '^install ok installed$' && return
    say "installing libclang-dev"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libclang-dev > "$CACHE/apt.log" 2>&1 \
        || { tail -n 20 "$CACHE/apt.log" >&2; exit 2; }
}

build() {
    local partial=$ROOT.partial
    say "building version $VERSION"
    rm -rf -- "$partial"
    # Without its default feature, a target in video memory.
    CARGO_TARGET_DIR=$partial/target cargo install rublk --version "=$VERSION" --no-default-features --locked --root "$partial" \
        > "$CACHE/rublk.log" 2>&1 || { tail -n 30 "$CACHE/rublk.log" >&2; exit 2; }
    rm -rf -- "$partial/target"
    mv -- "$partial" "$ROOT"
}

mkdir -p "$CACHE"
exec {LOCK}> "$CACHE/rublk.lock"
flock "$LOCK"
if [ ! -x "$ROOT/bin/rublk" ]; then
    install_libclang
    build
fi
echo "$ROOT/bin"
