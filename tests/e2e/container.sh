#!/usr/bin/env bash
# Runs a program as its container would run it, without a container engine: a root file system that cannot be
# written, no capability, no way to more rights, an unprivileged user, a /tmp of its own, the network or none.
#
#   container.sh DATA PYTHON_PREFIX UID COMMAND…
#
# DATA is mounted at /tmp/data. Needs root, and a mount namespace of its own (unshare --mount).
set -euo pipefail
readonly data=$1 prefix=$2 uid=$3
shift 3

mount --make-rprivate /
mount -t tmpfs -o mode=1777 none /mnt
mkdir /mnt/data /mnt/prefix
mount --bind "$data" /mnt/data
if [[ $prefix == /root/* ]]; then # an interpreter in root's home, where no other user may go
    mount --bind "$prefix" /mnt/prefix
    mount -t tmpfs -o mode=755 none /root
    mkdir -p "$prefix"
    mount --bind /mnt/prefix "$prefix"
fi
mount --rbind /mnt /tmp
mount -o remount,bind,ro /
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs \
    --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
