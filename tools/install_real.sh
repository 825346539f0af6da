#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install Debian's own packages of the programs that tests/real takes as they are:
#     tools/install_real.sh NAME...      names as in packages_of, below
# Needs root and Debian or a distribution made from it. Starts no service and makes no database:
# the packages' scripts are told not to, and what told them so is gone when this ends.
set -eu

policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/textpoke.conf
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 NEEDRESTART_SUSPEND=1

fail() {
	echo "install_real.sh: $1" >&2
	exit 1
}

packages_of() {
	case $1 in
	cmake) echo cmake ;;
	debuggers) echo gdb linux-perf ;;
	differential) echo gcc libc6-dev zlib1g-dev libzstd-dev libssl-dev python3 ;;
	formats) echo chromium golang-go perl ;;
	lighttpd) echo lighttpd wrk ;;
	lua) echo lua5.4 ;;
	mariadb) echo mariadb-server-core mariadb-client-core ;;
	memcached) echo memcached ;;
	nginx) echo nginx wrk ;;
	perl) echo perl-base ;;
	postgres) echo postgresql ;;
	python) echo python3 ;;
	python-suite) "$0" python && echo "lib$(basename "$(readlink -f /usr/bin/python3)")-testsuite" ;;
	redis) echo redis-server redis-tools ;;
	redis-suite) echo redis-server redis-tools tcl ;;
	ripgrep) echo ripgrep ;;
	sevenzip) echo 7zip ;;
	sqlite) echo sqlite3 ;;
	sqlite-suite) echo libsqlite3-tcl tcl ;;
	tmux) echo tmux ;;
	xz) echo xz-utils ;;
	*) fail "no program $1" ;;
	esac
}

installed() {
	dpkg-query -W -f '${db:Status-Abbrev}\n' "$@" 2>/dev/null | grep -c '^ii' | grep -qx "$#"
}

restore() {
	rm -f "$policy" "$no_cluster"
	[ ! -e "$policy.textpoke" ] || mv "$policy.textpoke" "$policy"
}

start_nothing() {
	[ -e "$policy.textpoke" ] && restore # an earlier run was killed
	trap restore EXIT
	trap 'exit 1' HUP INT TERM
	[ ! -e "$policy" ] || mv "$policy" "$policy.textpoke"
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	mkdir -p "${no_cluster%/*}"
	echo 'create_main_cluster = false' >"$no_cluster"
}

install() {
	apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >&2
}

[ $# -gt 0 ] || fail 'say which: cmake, nginx, redis, ... (see packages_of)'
wanted=
for name; do
	packages=$(packages_of "$name") || exit 1
	wanted="$wanted $packages"
done
command -v dpkg-query >/dev/null || fail 'Debian is needed: it takes its packages as they are'
# shellcheck disable=SC2086
wanted=$(printf '%s\n' $wanted | sort -u)
# shellcheck disable=SC2086
installed $wanted && exit 0
[ "$(id -u)" = 0 ] || fail "root is needed to install $(echo $wanted)"
command -v apt-get >/dev/null || fail 'apt-get is needed'
exec 9>/run/lock/textpoke-install
flock 9
start_nothing
# shellcheck disable=SC2086
install $wanted || { apt-get -qq update >&2 && install $wanted; } || fail "apt could not install $(echo $wanted)"
# shellcheck disable=SC2086
installed $wanted || fail "apt did not install all of $(echo $wanted)"
