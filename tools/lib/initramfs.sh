# shellcheck shell=bash disable=SC2154
# The initramfs of the test machine. What a kernel needs to mount the host's root is made once and
# cached; what a run brings along is a second archive, which the kernel unpacks over the first.
# To be sourced after kernel.sh.

# Their dependencies come by themselves.
boot_modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay)

# boot_archive VERSION: prints the path of the archive with busybox and these modules.
boot_archive() {
	local version=$1 key
	key=$(printf '%s\n' "${boot_modules[@]}" | cksum)
	cached "boot-$version-${key%% *}.cpio" pack_boot_archive "$version" &&
		printf '%s\n' "$cache/boot-$version-${key%% *}.cpio"
}

pack_boot_archive() {
	local version=$1 folder=$2 root=$2/root module path
	mkdir -p "$root/bin" "$root/modules" && cp /bin/busybox "$root/bin/busybox" || return
	for module in "${boot_modules[@]}"; do
		modprobe -d "$cache/kernel-$version" -S "$(kernel_release "$version")" --show-depends "$module" || return
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$folder/paths"
	while IFS= read -r path; do
		module=$(basename "$path" .xz)
		if [ "$path" = "${path%.xz}" ]; then cp "$path" "$root/modules/$module"; else xz -dc "$path" >"$root/modules/$module"; fi || return
		printf '%s\n' "$module" >>"$root/modules/order"
	done <"$folder/paths"
	rmdir "$folder/out" && pack "$root" >"$folder/out"
}

# pack FOLDER: an archive of it, owned by root whoever makes it.
pack() {
	(cd "$1" && find . -print0 | cpio --null --create --format=newc --owner=+0:+0 --quiet)
}
