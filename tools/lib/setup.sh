# shellcheck shell=bash
# From a fresh clone to a built checkout. To be sourced after common.sh and apt.sh.

# What `npm ci` and the build need besides Node.
install_build_tools() {
	command -v node >/dev/null || die 1 "node: not found (install Node.js 20 or later)"
	command -v npm >/dev/null || die 1 "npm: not found (it comes with Node.js)"
	install_packages cmake g++ make
}

# Installs dependencies where the lock file is newer than what is there, then builds.
build_checkout() {
	local installed=$checkout/node_modules/.package-lock.json
	if [ ! -e "$installed" ] || [ "$checkout/package-lock.json" -nt "$installed" ]; then
		say "installing npm packages"
		# prepare builds: once is enough, and the line below says what it does.
		(cd "$checkout" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2 ||
			die 1 "npm ci failed (its own words are above)"
		touch "$installed"
	fi
	(cd "$checkout" && node tools/build.mjs) || die 1 "the build failed (its own words are above)"
}
