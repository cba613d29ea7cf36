# shellcheck shell=bash
# Debian packages on this machine: installs what is missing, and says so first.
# To be sourced after common.sh.

# Runs apt-get as root, silently; what it said is shown only where it failed.
quiet_apt() {
	local log status=0 as_root=()
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || die 1 "no right to install, and no sudo (as root: apt-get $*)"
		as_root=(sudo --)
	fi
	log=$(mktemp "${TMPDIR:-/tmp}/vduse-apt.XXXXXX")
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -y -o DPkg::Lock::Timeout=600 "$@" </dev/null >"$log" 2>&1 || status=$?
	[ "$status" = 0 ] || tail -n 20 "$log" >&2
	rm -f "$log"
	return "$status"
}

# apt-get waits for dpkg's lock by itself, but not for that of the lists.
update_lists() {
	local attempt
	for attempt in 1 2 3; do
		quiet_apt update && return
		[ "$attempt" = 3 ] || sleep 5
	done
	return 1
}

lists_are_fresh() {
	[ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ] &&
		[ -n "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1 2>/dev/null)" ]
}

# install_packages PACKAGE…: those not yet installed; nothing runs when all are.
install_packages() {
	local package installed missing=()
	command -v dpkg-query >/dev/null || die 1 "dpkg: not found (this needs Debian)"
	installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
	for package; do
		case $'\n'$installed$'\n' in
		*$'\n'"installed $package"$'\n'*) ;;
		*) missing+=("$package") ;;
		esac
	done
	[ ${#missing[@]} != 0 ] || return 0

	say "installing ${missing[*]}"
	lists_are_fresh || update_lists || true
	# Lists less than a day old can still name a package the mirror has replaced since.
	quiet_apt install --no-install-recommends "${missing[@]}" ||
		{ update_lists && quiet_apt install --no-install-recommends "${missing[@]}"; } ||
		die 1 "cannot install ${missing[*]} (apt's own words are above)"
}

# What the checks call in the test machine. They are installed on this machine, because its root
# file system is the test machine's.
install_test_tools() {
	install_packages crun e2fsprogs fio iproute2 kmod mmc-utils procps python3 qemu-utils strace udev util-linux
}
