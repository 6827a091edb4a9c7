#!/bin/sh
# Puts in place what `make` needs from Debian: `setup.sh venv` for the virtual environment, `setup.sh tests` for all.
# Rules: the list below is the only one; nothing is installed that is there already; where apt-get may not be
# used, one sentence names the packages and the exit status is 1.
set -u

PYTHON=${PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin # mkfs and losetup live there, and a plain user's PATH may leave them out
missing=""

# want PACKAGE COMMAND...: the package is missing when the command fails.
want() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

look() {
    missing=""
    # Debian's python3 comes without ensurepip, which a virtual environment is made with.
    want python3-venv "$PYTHON" -c "import ensurepip, venv"
    [ "$1" = tests ] || return 0
    # Tests read the order of writes, flushes and renames from the system calls themselves.
    want strace command -v strace
    # mkfs.ext4 makes the small real file systems that tests fill up.
    want e2fsprogs command -v mkfs.ext4
    # Those file systems, bind mounts and read-only folders are mounted for real.
    want mount command -v mount
    # unshare keeps a test's mounts away from the machine; losetup backs them.
    want util-linux command -v unshare
    # ps names the processes that a killed run must not leave behind.
    want procps command -v ps
    # A wrong wall clock for one command, which jumps while it runs.
    want faketime command -v faketime
    # The other end of a serial line or a socket that is not our own code.
    want socat command -v socat
    # The terminal programs that technicians have, as they are.
    want picocom command -v picocom
    want minicom command -v minicom
    # A technician's hour is looked at on a real screen.
    want tmux command -v tmux
    # systemd-analyze judges the units as the service manager itself would.
    want systemd command -v systemd-analyze
    # The init script runs under the shell and the tools that small terminals have.
    want busybox command -v busybox
}

fail() {
    echo "setup: $1" >&2
    exit 1
}

# apt_get ARGUMENT...: runs apt-get without questions; as root, or by sudo where sudo asks for no password.
apt_get() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null
    fi
}

may_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" = 0 ] || sudo -n true >/dev/null 2>&1
}

for_what=${1:-}
case $for_what in
venv | tests) ;;
*) fail "say what for: setup.sh venv, or setup.sh tests" ;;
esac

"$PYTHON" -c "import sys; sys.exit(sys.version_info < (3, 9))" 2>/dev/null ||
    fail "$PYTHON is missing or older than Python 3.9; name another with make PYTHON=..."

look "$for_what"
[ -n "$missing" ] || exit 0

please="install the missing Debian packages as root: apt-get install$missing"
may_install || fail "$please"
echo "setup: installing the Debian packages$missing"
apt_get update || fail "apt-get update failed; $please"
# The list is split into words on purpose.
# shellcheck disable=SC2086
apt_get install -y --no-install-recommends $missing >/dev/null || fail "apt-get install failed; $please"

look "$for_what"
[ -z "$missing" ] || fail "still missing after apt-get:$missing (is $PYTHON the interpreter that Debian packages?)"
