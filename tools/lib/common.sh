# shellcheck shell=bash disable=SC2034
# What every program in tools/ shares: messages, the checkout, the cache. To be sourced.

# The program a person started names itself in every message: `vm: what: why`.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die STATUS MESSAGE…
die() {
	local status=$1
	shift
	say "$@"
	exit "$status"
}

# Both are physical paths: they must mean the same in the test machine, where links of /dev and
# /run do not exist.
checkout=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$(realpath -m -- "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vduse")
