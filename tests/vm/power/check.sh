# Runs in the lab after the cut: what the disks hold before anybody touches them, and that the device comes back.
set -euo pipefail
protocol=$1
journal=/lab/files/journal
summary=/lab/results/summary

status() { twinblk status vm1 --json | tee -a /lab/results/status | jq -r "$1"; }
oracle() { twinblk-load check --journal "$@"; }

e2fsck -p /lab/state >&2 || [ $? = 1 ]
mkdir -p /var/lib/twinblk
mount /lab/state /var/lib/twinblk

primary=$(status '.legs[] | select(.role == "primary") | .id')
secondary=$(status '.legs[] | select(.role == "secondary") | .id')
health=$(status '.legs[] | select(.role == "secondary") | .health')
echo "primary $primary, secondary ${secondary:-none} ${health:-}:" >> "$summary"
echo "the recorded primary, $primary, holds all that was acknowledged:"
oracle "$journal" "/lab/$primary" | tee -a "$summary"
case $health,$protocol in
    in-sync,async)
        echo "leg $secondary, in sync, is a valid image of an earlier barrier:"
        oracle "$journal" --order-only "/lab/$secondary"
        ;;
    in-sync,*)
        echo "leg $secondary, in sync, holds all that was acknowledged:"
        oracle "$journal" "/lab/$secondary"
        ;;
    *) echo "nothing is promised of leg ${secondary:-b}: ${health:-never attached}" ;;
esac

device=$(twinblk start vm1)
echo "the device holds all that was acknowledged:"
oracle "$journal" "$device"
if [ -z "$secondary" ]; then
    twinblk attach vm1 /lab/b --overwrite
elif [ "$(status .state)" = single ]; then
    twinblk attach vm1 "/lab/$secondary"
fi
twinblk wait vm1 --timeout 60
echo "resync: $(status '.last_resync | "\(.kind) of \(.bytes_total) bytes, \(.bytes_written) written"')" | tee -a "$summary"
oracle "$journal" "$device"

echo "the device works:"
twinblk-load write "$device" --seed "$((LAB_SEED + 1000000))" --writers 4 --writes 50 > second
oracle second "$device"
twinblk stop vm1
echo "the legs are equal:"
cmp /lab/a /lab/b
for leg in a b; do oracle second "/lab/$leg"; done
