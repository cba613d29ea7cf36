# shellcheck shell=bash disable=SC2154
# Packages of other Debian suites, unpacked into the cache. Everything happens in a private apt
# root, so nothing of this machine's apt configuration changes. To be sourced after apt.sh.

# cached NAME COMMAND…: unless $cache/NAME is there, runs COMMAND… FOLDER, which fills FOLDER/out,
# and makes that $cache/NAME in one step.
cached() {
	local name=$1
	shift
	[ ! -e "$cache/$name" ] || return 0
	mkdir -p "$cache" || return
	(
		flock -n 9 || { say "waiting for another run that is fetching" && flock 9; }
		[ ! -e "$cache/$name" ] || exit 0
		umask 022 # any uid may use what is cached
		# Whoever made these was killed: a living one would hold the lock.
		rm -rf "$cache"/.fetch.*
		folder=$(mktemp -d "$cache/.fetch.XXXXXX") || exit
		trap 'rm -rf "$folder"' EXIT
		mkdir "$folder/out" || exit
		"$@" "$folder" && mv "$folder/out" "$cache/$name"
	) 9>"$cache/lock"
}

# fetch_packages SUITE NAME PACKAGE…: makes $cache/NAME of these packages of SUITE.
fetch_packages() {
	local suite=$1 name=$2
	shift 2
	cached "$name" unpack_from_suite "$suite" "$@"
}

# unpack_from_suite SUITE PACKAGE… FOLDER
unpack_from_suite() {
	local suite=$1 packages=("${@:2:$#-2}") folder=${!#}
	say "fetching ${#packages[@]} packages from $suite"
	open_suite "$folder" "$suite" && unpack_packages "$folder" "${packages[@]}"
}

# The mirror is this machine's own: whatever serves its release serves the other suites as well.
debian_mirror() {
	local codename
	codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016 # apt-get fills these in
	apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v codename="$codename" '$1 == codename && $2 == "main" { print $3; exit }'
}

# open_suite FOLDER SUITE: makes FOLDER an apt root that knows this one suite.
open_suite() {
	local folder=$1 suite=$2 mirror options="arch=amd64 lang=none targets=Packages"
	local keyring=/usr/share/keyrings/debian-archive-keyring.gpg

	mirror=$(debian_mirror)
	if [ -z "$mirror" ]; then # apt names its sources only once it has their lists
		say "reading the package lists"
		update_lists && mirror=$(debian_mirror)
	fi
	[ -n "$mirror" ] || { say "no Debian mirror among this machine's apt sources" && return 1; }

	mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" || return
	[ ! -f "$keyring" ] || options+=" signed-by=$keyring"
	printf 'deb [%s] %s %s main\n' "$options" "$mirror" "$suite" >"$folder/sources.list"
	: >"$folder/status"
	# The machine's apt.conf stays in force, since it may name a proxy; its hooks do not. The mirror
	# is asked as the caller, because nobody else can be expected to reach into a home.
	cat >"$folder/apt.conf" <<-EOC
		Dir::Etc::sourcelist "$folder/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State "$folder/state";
		Dir::State::status "$folder/status";
		Dir::Cache "$folder/cache";
		APT::Sandbox::User "";
		Acquire::Retries "3";
		#clear APT::Update::Pre-Invoke;
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
	EOC
	private_apt "$folder" update
}

private_apt() {
	local folder=$1
	shift
	apt-get -c "$folder/apt.conf" -qq "$@" </dev/null >"$folder/log" 2>&1 ||
		{ tail -n 20 "$folder/log" >&2 && return 1; }
}

# unpack_packages FOLDER PACKAGE…: downloads them and unpacks them into FOLDER/out.
unpack_packages() {
	local folder=$1 deb
	shift
	mkdir "$folder/debs" || return
	(cd "$folder/debs" && private_apt "$folder" download "$@") || return
	for deb in "$folder"/debs/*.deb; do
		dpkg -x "$deb" "$folder/out" || return
	done
}
