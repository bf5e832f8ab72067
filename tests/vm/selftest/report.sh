# Runs in the lab: succeeds, but the kernel's log has a line that looks like a report.
echo "BUG: just a line" > /dev/kmsg
