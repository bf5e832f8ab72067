# Runs one case: `one.sh FILE NAME`. Its steps go to /tmp/case/trace.
set -Eeuo pipefail
cd /tmp/case
property() { :; }
# shellcheck source=lib.sh
. /lab/files/lib.sh
# shellcheck source=/dev/null
. "$1"
trap 'echo "failed at ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
trap tidy EXIT
exec {BASH_XTRACEFD}> /tmp/case/trace
PS4='+ ${SECONDS}s '
set -x
"$2"
