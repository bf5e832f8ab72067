# Runs in the lab until the power is cut: the start after a cut, and the resync that it begins.
set -euo pipefail
e2fsck -p /lab/state >&2 || [ $? = 1 ]
mkdir -p /var/lib/twinblk
mount /lab/state /var/lib/twinblk
# Every other time the cut falls into the start itself, else into what comes after it.
[ $((LAB_SEED / 3 % 2)) = 1 ] || echo @@CUT-READY@@
twinblk start vm1 >&2
echo @@CUT-READY@@
sleep infinity
