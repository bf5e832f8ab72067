# Runs in the lab: prints what came in, leaves results, ends with a status of its own. A child outlives the script.
echo "$1|$2|$WORD"
lab-tool
cat /lab/files/deep/file
echo on-stderr > /dev/stderr
mkdir -p /lab/results/deep
echo kept > /lab/results/deep/result
head -c 50000000 /dev/zero > /lab/results/large
sleep infinity &
exit 7
