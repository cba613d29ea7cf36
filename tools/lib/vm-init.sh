#!/bin/busybox sh
# /init of the test machine: puts a tmpfs over the host's root, which stays as it is, and hands over
# to vm-agent.pl. What it says goes to the console, and PID 1 must not fail: the kernel panics, and
# tools/vm shows the console's last lines.
# shellcheck shell=dash
set -eu
export PATH=/bin
/bin/busybox --install -s /bin

mkdir -p /proc /sys /dev /lower /upper /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order

mount_9p() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"; }

mount_9p root /lower ro,cache=mmap
mount -t tmpfs -o size=75%,mode=755 tmpfs /upper
mkdir /upper/files /upper/work
if [ -s /job/revealed ]; then
	mount --bind /upper/files /lower/mnt
	chroot /lower /usr/bin/perl - /mnt </reveal 3</job/revealed
	umount /lower/mnt
fi
# metacopy: a change of mode need not copy the file; redirect_dir: a folder of the host's can be renamed.
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work,metacopy=on,redirect_dir=on overlay /root

# A checkout or a cache under the host's /dev or /run is put aside until the machine's own are there.
number=0
while IFS= read -r path; do
	number=$((number + 1))
	mkdir -p "/aside/$number"
	mount --bind "/root$path" "/aside/$number"
done </job/hidden

mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t debugfs debugfs /root/sys/kernel/debug
mount --move /dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr
mount -t tmpfs -o mode=755 tmpfs /root/run
mkdir -m 1777 /root/run/lock

number=0
while IFS= read -r path; do
	number=$((number + 1))
	mkdir -p "/root$path"
	mount --move "/aside/$number" "/root$path"
done </job/hidden

mkdir -p /root/usr/lib/modules
mount --bind "/lower$(cat /job/modules)" /root/usr/lib/modules
if [ -e /job/share ]; then
	mkdir -p /root/share
	# Uncached: both sides see each other's changes at once, and nothing is left to be written when
	# the machine is killed.
	mount_9p share /root/share cache=none
fi

hostname vduse-vm
ip link set lo up
# Not before: QEMU 7.2's emulation of several CPUs can run stale code while the kernel patches its
# own, which it does most of while it starts ("Oops: int3", one start in 60).
for cpu in /root/sys/devices/system/cpu/cpu[1-9]*/online; do
	[ ! -e "$cpu" ] || echo 1 >"$cpu"
done

ulimit -H -n 524288 # as systemd does; Linux itself starts with 4096

cp -R /job /root/run/vm
exec switch_root /root /usr/bin/perl /run/vm/agent
