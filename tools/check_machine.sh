#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Say in one line what the build misses on this machine; install Python.h where that is simple.
set -eu

python=$1

fail() {
	echo "textpoke: cannot build: $1" >&2
	exit 1
}

command -v "$python" >/dev/null || fail "no '$python' here; install Python 3.11 or newer, or say PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	fail "$("$python" --version) is too old; textpoke needs 3.11 or newer (PYTHON=/path/to/python3)"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
	fail "'$python' has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
command -v "${CC:-gcc}" >/dev/null || fail "no C compiler '${CC:-gcc}' here; on Debian and Ubuntu: apt-get install gcc"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -e "$header" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "Python.h is missing: installing python3-dev" >&2
	{ apt-get install -y -q python3-dev || { apt-get update -q && apt-get install -y -q python3-dev; }; } >/dev/null 2>&1 || true
fi
[ -e "$header" ] || fail "$header is missing; on Debian and Ubuntu: apt-get install python3-dev"
