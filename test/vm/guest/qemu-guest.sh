#!/bin/sh
# Inside a virtual machine whose disk, /dev/vda, is served over vhost-user.
#   qemu-guest.sh begin|again
# `begin` works on the disk, reboots the machine, checks the disk, and ends in the middle of writing,
# whereupon tools/vm kills QEMU; `again` finds all as it was. The disk itself remembers how far it
# came. Each proof is a line "ok - WHAT" or "not ok - WHAT".
#
# The disk: fio has the first 128 MiB, then come the data that must last, and their checksum.
DATA_MIB=128
DATA_LENGTH_MIB=16
SUM_MIB=160

# check WHAT COMMAND…
check() {
	what=$1
	shift
	if output=$("$@" 2>&1); then
		echo "ok - $what"
	else
		echo "not ok - $what"
		printf '%s\n' "$output" | sed 's/^/# /'
	fi
}

equal() { [ "$1" = "$2" ] || { echo "$1, not $2"; return 1; }; }

data_sum() {
	dd if=/dev/vda bs=1M skip=$DATA_MIB count=$DATA_LENGTH_MIB iflag=direct status=none | sha256sum | cut -c -64
}

kept_sum() { dd if=/dev/vda bs=1M skip=$SUM_MIB count=1 iflag=direct status=none | head -c 64; }

# verify SECONDS: fio on both queues.
verify() {
	fio --name=verify --filename=/dev/vda --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 \
		--output-format=terse --rw=randwrite --bsrange=512-64k --blockalign=512 --iodepth=16 \
		--numjobs=2 --size=48m --offset_increment=64m --cpus_allowed=0-1 --cpus_allowed_policy=split \
		--verify_backlog=512 --time_based --runtime="$1"
}

keep() {
	dd if=/dev/urandom of=/dev/vda bs=1M seek=$DATA_MIB count=$DATA_LENGTH_MIB oflag=direct conv=fsync status=none &&
		{ data_sum && head -c 1048576 /dev/zero; } |
		dd of=/dev/vda bs=1M seek=$SUM_MIB count=1 iflag=fullblock oflag=direct conv=fsync status=none
}

modprobe virtio_blk
tries=0
until [ -b /dev/vda ] || [ $tries = 300 ]; do sleep 0.1 && tries=$((tries + 1)); done

if [ -n "$(kept_sum | tr -d '\0')" ]; then
	[ "$1" = begin ] && when='after a reboot' || when='after QEMU was killed'
	check "$when: the data are there" equal "$(data_sum)" "$(kept_sum)"
	if [ "$1" = begin ]; then
		fio --name=last --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randwrite --bs=16k \
			--iodepth=16 --size=64m --time_based --runtime=600 --output=/dev/null &
		until awk '{ exit !($2 > 0) }' /sys/block/vda/inflight; do sleep 0.1; done
		echo "ok - ends with writes in flight"
	else
		check "$when: fio verify, 3 s" verify 3
		check "$when: flush" dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync status=none
	fi
	exit
fi

check 'size' equal "$(cat /sys/block/vda/size)" $((256 * 2048))
check 'serial' equal "$(cat /sys/block/vda/serial)" S1
check 'two queues' equal "$(ls /sys/block/vda/mq | wc -l)" 2
check 'the write cache is on: flushes come' equal "$(cat /sys/block/vda/queue/write_cache)" 'write back'
check 'fio verify, 15 s' verify 15
# No point of its own, unless it fails: what is said right before a reboot can be lost.
output=$(keep 2>&1) || {
	echo "not ok - data that must last are written: $output"
	exit 1
}
echo b >/proc/sysrq-trigger
sleep 60
echo "not ok - reboots"
exit 1
