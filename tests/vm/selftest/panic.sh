# Runs in the lab: panics.
echo c > /proc/sysrq-trigger
