#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build a program from Debian's source package with NOPs at every function's entry, once:
#     tools/build_real.sh redis|lua|memcached      leaves it in build/real/NAME
# Needs root (apt installs what the build needs) and Debian or a distribution made from it.
# The machine's own list of package sources is read and left as it is.
set -eu
cd "$(dirname "$0")/.."

name=$1
real=$PWD/build/real
work=$real/$name
apt=$real/apt
log=$real/$name.log
flags='-O2 -g -fpatchable-function-entry=5'
jobs=$(nproc)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

fail() {
	echo "build_real.sh: $name: $1" >&2
	exit 1
}

need() { # install the packages among these that are not installed
	dpkg-query -W -f '${db:Status-Abbrev}\n' "$@" 2>/dev/null | grep -c '^ii' | grep -qx "$#" && return
	apt-get -qq install -y --no-install-recommends "$@" ||
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"; }
}

own_apt() { # apt-get that knows source packages, from the machine's own mirrors
	apt-get -qq -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o Acquire::Languages=none \
		-o APT::Sandbox::User=root "$@"
}

know_sources() {
	# shellcheck disable=SC1091
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	# shellcheck disable=SC1091
	keys=/usr/share/keyrings/$(. /etc/os-release && echo "$ID")-archive-keyring.gpg
	[ -e "$keys" ] && signed="[signed-by=$keys]" || signed=
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	apt-get indextargets --format "deb-src $signed \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
		'Created-By: Packages' | grep " $codename[a-z-]* " | uniq >"$apt/sources.list"
	own_apt update
}

fetch() { # unpack the source package $1 into the directory $2
	own_apt source --only-source "$1" >/dev/null || { know_sources && own_apt source --only-source "$1"; }
	for unpacked in "$1"-*/; do
		mv "$unpacked" "$2"
	done
}

build_redis() {
	need gcc make dpkg-dev libc6-dev pkg-config liblzf-dev
	fetch redis source
	make -C source/src -j"$jobs" redis-server redis-benchmark redis-cli \
		MALLOC=libc BUILD_TLS=no USE_SYSTEMD=no OPTIMIZATION=-O2 \
		CFLAGS="$flags -I/usr/include/liblzf" LDFLAGS=-llzf
	cp source/src/redis-server source/src/redis-benchmark source/src/redis-cli .
}

build_lua() { # as Debian links it, and once more at a fixed address
	need gcc dpkg-dev libc6-dev
	fetch lua5.4 source
	rm source/src/luac.c
	echo "#define DEB_HOST_MULTIARCH \"$(gcc -print-multiarch)\"" >source/src/lua5.4-deb-multiarch.h
	for kind in pie no-pie; do
		# shellcheck disable=SC2086
		gcc -std=gnu99 $flags -DLUA_USE_LINUX -f$kind -$kind -Wl,-E \
			source/src/*.c -lm -ldl -o lua-$kind
	done
}

build_memcached() {
	need gcc make dpkg-dev libc6-dev libevent-dev
	fetch memcached source
	cd source
	CFLAGS=$flags ./configure --disable-docs --disable-extstore
	make -j"$jobs" memcached
	cp memcached ..
}

case $name in redis | lua | memcached) ;; *) fail 'it builds redis, lua and memcached' ;; esac
mkdir -p "$real"
exec 9>"$real/lock"
flock 9
stamp=$(cksum <"$0")
[ "$(cat "$work/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
[ "$(id -u)" = 0 ] || fail 'root is needed: apt installs what the build needs'
command -v apt-get >/dev/null || fail 'apt-get is needed: the sources are Debian packages'
rm -rf "$work" "$work.new"
mkdir -p "$work.new"
if ! (cd "$work.new" && set -e && "build_$name") >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	fail "the build failed, see $log"
fi
rm -f "$work.new"/*.tar.* "$work.new"/*.dsc
echo "$stamp" >"$work.new/stamp"
mv "$work.new" "$work"
