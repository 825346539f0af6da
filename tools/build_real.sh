#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build a program, most from Debian's source packages, with NOPs at every function's entry, once:
#     tools/build_real.sh redis|lua|memcached|python|musl|go      leaves it in build/real/NAME
# or unpack the sources of one for its own tests, with Debian's own program where those look for it:
#     tools/build_real.sh redis_tests|sqlite_tests
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

# shellcheck disable=SC1091
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")

know_sources() {
	# shellcheck disable=SC1091
	keys=/usr/share/keyrings/$(. /etc/os-release && echo "$ID")-archive-keyring.gpg
	[ -e "$keys" ] && signed="[signed-by=$keys]" || signed=
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	apt-get indextargets --format "deb-src $signed \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
		'Created-By: Packages' | grep " $codename[a-z-]* " | uniq >"$apt/sources.list"
	own_apt update
}

fetch() { # unpack the source package $1 into the directory $2
	own_apt source --only-source "$1" >/dev/null || { know_sources && own_apt source --only-source "$1"; } ||
		own_apt source --only-source "$1/$codename" # a mirror may lack the newest update
	for unpacked in "$1"-*/; do
		mv "$unpacked" "$2"
	done
}

build_redis() {
	need gcc make dpkg-dev libc6-dev pkg-config liblzf-dev tcl # its own tests are in Tcl
	fetch redis source
	make -C source/src -j"$jobs" redis-server redis-benchmark redis-cli \
		MALLOC=libc BUILD_TLS=no USE_SYSTEMD=no OPTIMIZATION=-O2 \
		CFLAGS="$flags -I/usr/include/liblzf" LDFLAGS=-llzf
	cp source/src/redis-server source/src/redis-benchmark source/src/redis-cli .
	ln -s redis-server source/src/redis-check-aof # as `make install` does
	ln -s redis-server source/src/redis-check-rdb
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

build_python() { # static, neither profiled nor linked as one, with what its own tests need of libraries
	need gcc make dpkg-dev libc6-dev pkg-config zlib1g-dev libffi-dev
	fetch python3.11 source
	cd source
	CFLAGS=$flags ./configure --without-ensurepip --disable-shared
	make -j"$jobs" sharedmods
	find . -name '*.o' -delete
}

# shellcheck disable=SC2086
build_musl() { # tests/targets/counter.c on another libc
	need musl-tools
	musl-gcc $flags -fno-pie -static ../../../tests/targets/counter.c -o counter-static
	musl-gcc $flags -fPIE -static-pie ../../../tests/targets/counter.c -o counter-static-pie
}

build_go() { # without any C, and with a C function and glibc, both static
	need gcc libc6-dev golang-go
	cp ../../../tests/real/churn*.go .
	export GOCACHE="$PWD/cache" GO111MODULE=off GOFLAGS=-p=2 CGO_CFLAGS="$flags"
	CGO_ENABLED=0 go build -o churn-pure churn.go churn_pure.go
	CGO_ENABLED=1 go build -ldflags '-linkmode external -extldflags -static' \
		-o churn-cgo churn.go churn_cgo.go
	rm -rf cache
}

build_redis_tests() { # install_real.sh has installed the programs
	need dpkg-dev tcl
	fetch redis source
	for program in server cli benchmark check-aof check-rdb sentinel; do
		ln -s "/usr/bin/redis-$program" "source/src/redis-$program"
	done
}

build_sqlite_tests() {
	need dpkg-dev tcl libsqlite3-tcl
	fetch sqlite3 source
}

case $name in
redis | lua | memcached | python | musl | go | redis_tests | sqlite_tests) ;;
*) fail 'it builds redis, lua, memcached, python, musl, go, redis_tests and sqlite_tests' ;;
esac
mkdir -p "$real"
exec 9>"$real/lock"
flock 9
stamp=$({ sed -n "/^build_$name()/,/^}/p" "$0" && echo "$flags"; } | cksum)
[ "$(cat "$work/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
[ "$(id -u)" = 0 ] || fail 'root is needed: apt installs what the build needs'
command -v apt-get >/dev/null || fail 'apt-get is needed: the sources are Debian packages'
rm -rf "$work" "$work.new"
mkdir -p "$work.new"
set +e # in a condition the shell would ignore it inside, and build on after a failure
(cd "$work.new" && set -e && "build_$name") >"$log" 2>&1
failed=$?
set -e
if [ "$failed" != 0 ]; then
	tail -n 20 "$log" >&2
	fail "the build failed, see $log"
fi
rm -f "$work.new"/*.tar.* "$work.new"/*.dsc
echo "$stamp" >"$work.new/stamp"
mv "$work.new" "$work"
