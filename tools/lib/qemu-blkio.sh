# shellcheck shell=bash disable=SC2154
# An independent client for both transports: trixie's QEMU tools with libblkio, which Debian 12
# lacks, with every library they need. To be sourced after fetch.sh.

fetch_qemu_blkio() {
	fetch_packages trixie qemu-blkio \
		qemu-utils qemu-block-extra libblkio1 libc6 libgcc-s1 libaio1t64 libatomic1 libffi8 \
		libfuse3-4 libglib2.0-0t64 libgmp10 libgnutls30t64 libhogweed6t64 libidn2-0 libnettle8t64 \
		libnuma1 libp11-kit0 libpcre2-8-0 libtasn1-6 libunistring5 liburing2 libzstd1 zlib1g
}

# exec_qemu_blkio PROGRAM ARGUMENT…: by their own loader, because this machine's libc is older.
exec_qemu_blkio() {
	local program=$1 root=$cache/qemu-blkio libraries=$cache/qemu-blkio/usr/lib/x86_64-linux-gnu
	shift
	[ -x "$root/usr/bin/$program" ] || die 64 "$program: not among qemu-io, qemu-img, qemu-nbd, qemu-storage-daemon"
	QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" --argv0 "$program" \
		--library-path "$libraries" "$root/usr/bin/$program" "$@"
}
