# Runs in the lab: serves a disk to a guest in the guest and does under it what administrators do.
set -euo pipefail
protocol=$1

device=$(twinblk create vm1 /lab/disk0 --protocol "$protocol")

# The inner guest's programs, with their libraries, in an archive behind its initrd.
mkdir -p tree/bin
cp /lab/files/nested tree/
cp "$(command -v twinblk-load)" tree/bin/
ldd tree/bin/twinblk-load | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "tree$(dirname "$library")"
    cp -L "$library" "tree$library"
done
{ cat /lab/guest/initrd; (cd tree && find . | busybox cpio -o -H newc 2> /dev/null); } > initrd

mkfifo word
qemu-system-x86_64 -M pc -accel tcg -cpu qemu64 -m 256 -nodefaults -display none -no-reboot \
    -serial stdio -serial file:journal -kernel /lab/guest/vmlinux -initrd initrd \
    -append "console=ttyS0 panic=-1 no_timer_check nokaslr mitigations=off" \
    -drive "if=none,id=disk,format=raw,file=$device,cache=none" -device virtio-blk-pci,drive=disk < word > console &
guest=$!
exec 3> word
tail -f -n +1 console >&2 &

barriers() { { grep -c '^synced ' journal || true; } 2> /dev/null; }

# Waits until the guest has had so many barriers acknowledged since it was asked.
goes_on() {
    local goal=$(($(barriers) + $1))
    until [ "$(barriers)" -ge "$goal" ]; do
        kill -0 "$guest" || { cat console; exit 1; }
        # The guest in the guest has nothing to spare for somebody who looks often.
        sleep 1
    done
    echo "$(cut -d ' ' -f 1 /proc/uptime) s: $(barriers) barriers"
}

# Leaves the state for whoever looks at a failure.
trap 'cp console /lab/results/inner-console; cp journal /lab/results/; twinblk status vm1 --json > /lab/results/status || true' EXIT

touch journal
# The first takes a minute: the guest boots.
goes_on 1
twinblk attach vm1 /lab/disk1
twinblk wait vm1 --timeout 120
goes_on 3
twinblk detach vm1 b
goes_on 5
twinblk attach vm1 /lab/disk1
twinblk wait vm1 --timeout 120
goes_on 1
for turn in to back to; do
    echo "switch $turn: $(twinblk switch vm1 --json)"
    goes_on 3
done
twinblk detach vm1 a
goes_on 5
twinblk attach vm1 /lab/disk0
twinblk wait vm1 --timeout 120
goes_on 3

echo end >&3
wait "$guest"
grep -q "nested: all is as it was written" console || { cat console; exit 1; }
tr -d '\r' < journal > plain
twinblk-load check --journal plain "$device"
twinblk stop vm1
cmp /lab/disk0 /lab/disk1
for leg in disk0 disk1; do twinblk-load check --journal plain "/lab/$leg"; done
echo "$(grep -c '^synced ' plain) barriers, legs equal after $(cut -d ' ' -f 1 /proc/uptime) s"
