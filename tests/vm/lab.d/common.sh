# Shared helpers of the lab. Sourced, not run.
# shellcheck shell=bash

say() { printf 'lab: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 2
}

# Whether $1 is one of the kernels the lab has.
is_kernel() {
    local kernel
    for kernel in "${LAB_KERNELS[@]}"; do
        [ "$kernel" != "$1" ] || return 0
    done
    return 1
}
