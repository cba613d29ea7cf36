# shellcheck shell=bash disable=SC2154
# A QEMU that has vhost-user-test-device, a guest's end for any vhost-user device: 11.1 or later,
# which Debian 12 and 13 lack, with every library it needs. To be sourced after fetch.sh.

fetch_qemu_system() {
	cached qemu-system unpack_qemu_system
}

unpack_qemu_system() {
	local folder=$1
	unpack_from_suite trixie-backports qemu-system-x86 qemu-system-data seabios libelf1t64 "$folder" || return
	rm -r "$folder/debs" || return
	unpack_from_suite trixie \
		libaio1t64 libatomic1 libblkid1 libbpf1 libc6 libcap2 libcapstone5 libdaxctl1 libfdt1 libffi8 \
		libfuse3-4 libgcc-s1 libglib2.0-0t64 libgmp10 libgnutls30t64 libhogweed6t64 libibverbs1 \
		libidn2-0 libjpeg62-turbo libkmod2 libmount1 libndctl6 libnettle8t64 libnl-3-200 \
		libnl-route-3-200 libnuma1 libp11-kit0 libpcre2-8-0 libpixman-1-0 libpmem1 libpng16-16t64 \
		librdmacm1t64 libsasl2-2 libseccomp2 libselinux1 libslirp0 libssl3t64 libtasn1-6 libudev1 \
		libunistring5 liburing2 libuuid1 libvdeplug2t64 libzstd1 zlib1g "$folder" || return
	rm -rf "$folder/out/usr/share/doc" "$folder/out/usr/share/locale"
}

# qemu_system_command: sets `command` to what runs it, by its own loader: this machine's libc is
# older. The modules of another QEMU may be installed here; it must not take those.
qemu_system_command() {
	local root=$cache/qemu-system libraries=$cache/qemu-system/usr/lib/x86_64-linux-gnu
	command=(env "QEMU_MODULE_DIR=$libraries/qemu" "$libraries/ld-linux-x86-64.so.2"
		--argv0 qemu-system-x86_64 --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64"
		-L "$root/usr/share/qemu" -L "$root/usr/share/seabios")
}
