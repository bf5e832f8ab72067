# Runs in the lab: a guest in the guest writes to its disk, checks what it wrote, and the outer guest finds it there.
set -euo pipefail
cd /tmp
cat > nested << 'NESTED'
echo "nested: up" > /dev/console
for block in 0 1 2 3 4 5 6 7; do
    echo "block $block" | dd of=/dev/vda bs=4096 seek=$block conv=fsync,notrunc 2> /dev/null || exit
done
for block in 0 1 2 3 4 5 6 7; do
    [ "$(dd if=/dev/vda bs=4096 skip=$block count=1 2> /dev/null | head -n 1)" = "block $block" ] || exit
done
echo "nested: done" > /dev/console
NESTED
{ cat /lab/guest/initrd; echo nested | busybox cpio -o -H newc 2> /dev/null; } > initrd
qemu-system-x86_64 -M pc -accel tcg -cpu qemu64 -m 256 -nodefaults -display none -no-reboot -serial stdio \
    -kernel /lab/guest/vmlinux -initrd initrd -append "console=ttyS0 panic=-1 no_timer_check nokaslr mitigations=off" \
    -drive if=none,id=disk,format=raw,file=/lab/disk0,cache=none -device virtio-blk-pci,drive=disk < /dev/null > console
cp console /lab/results/nested-console
grep -q "nested: done" console
[ "$(dd if=/lab/disk0 bs=4096 skip=7 count=1 status=none | head -n 1)" = "block 7" ]
cat /proc/uptime
