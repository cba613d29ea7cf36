# shellcheck shell=bash disable=SC2034,SC2154
# Stock Debian kernels with VDUSE, in the cache. To be sourced after fetch.sh.

kernel_versions=(6.12 7.2)

# The suites that have it, the first choice first.
kernel_suites() {
	case $1 in
	6.12) echo bookworm-backports trixie ;;
	7.2) echo trixie-backports ;;
	esac
}

# fetch_kernel VERSION: makes $cache/kernel-VERSION: vmlinuz, and lib/modules with every module.
fetch_kernel() {
	cached "kernel-$1" unpack_kernel "$1"
}

unpack_kernel() {
	local version=$1 folder=$2 suite package='' release out=$2/out unpacked=$2/unpacked packages
	for suite in $(kernel_suites "$version"); do
		open_suite "$folder" "$suite" || continue
		package=$(newest_kernel "$folder" "$version")
		[ -z "$package" ] || break
	done
	[ -n "$package" ] || { say "no kernel $version in $(kernel_suites "$version")" && return 1; }
	release=${package#linux-image-}

	say "fetching $package from $suite"
	# Newer packages are split: the image is a shell that depends on its binary and its modules.
	mapfile -t packages < <(apt-cache -c "$folder/apt.conf" depends "$package" |
		sed -n "s/^ *Depends: \(linux-.*-${release//./\\.}\)\$/\1/p")
	unpack_packages "$folder" "$package" "${packages[@]}" || return

	mv "$out" "$unpacked" && mkdir -p "$out/lib" || return
	if [ -d "$unpacked/lib/modules" ]; then
		mv "$unpacked/lib/modules" "$out/lib/modules" && mv "$unpacked/boot/vmlinuz-$release" "$out/vmlinuz"
	else
		mv "$unpacked/usr/lib/modules" "$out/lib/modules" && mv "$out/lib/modules/$release/vmlinuz" "$out/vmlinuz"
	fi || return
	# The packages leave this to their installation.
	depmod -b "$out" "$release"
}

# newest_kernel FOLDER VERSION: the package's name; neither a cloud, rt nor debug flavour.
newest_kernel() {
	apt-cache -c "$1/apt.conf" pkgnames "linux-image-$2." |
		grep -E '^linux-image-[0-9.]+[^-]*-amd64$' | sort -V | tail -n 1
}

kernel_release() {
	basename "$cache/kernel-$1"/lib/modules/*
}
