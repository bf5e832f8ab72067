# Runs in the lab: never ends.
echo "the last words before the hang" > /dev/kmsg
sleep infinity
