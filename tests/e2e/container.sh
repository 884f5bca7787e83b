#!/usr/bin/env bash
# Runs a program as its container would run it, without a container engine: a root file system that cannot be
# written, no capability, no way to more rights, an unprivileged user, a /tmp of its own.
#
#   unshare --mount [--net] container.sh CHECKOUT DATA PYTHON_PREFIX UID COMMAND…
#
# The checkout is at /tmp/framebox, which is where COMMAND starts, and the data folder at /tmp/data.
set -euo pipefail
readonly checkout=$1 data=$2 prefix=$3 uid=$4
shift 4

mount -t tmpfs -o mode=1777 none /mnt
mkdir /mnt/framebox /mnt/data /mnt/prefix
mount --bind "$checkout" /mnt/framebox
mount -o remount,bind,ro /mnt/framebox
mount --bind "$data" /mnt/data
if [[ $prefix == /root/* ]]; then # an interpreter in root's home, where no other user may go
    mount --bind "$prefix" /mnt/prefix
    mount -t tmpfs -o mode=755 none /root
    mkdir -p "$prefix"
    mount --bind /mnt/prefix "$prefix"
fi
mount --rbind /mnt /tmp
mount -o remount,bind,ro /
cd /tmp/framebox
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs \
    --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
