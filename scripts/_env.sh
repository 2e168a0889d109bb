# Sourced by scripts/boot and scripts/test: makes the virtual environment they run in.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HARTBEAT_VENV:-$root/.venv}

say() { printf 'hartbeat: %s\n' "$*" >&2; }

# An error of the user's or the machine's, as opposed to one of the emulator's.
die() {
    say "$*"
    exit 2
}

# install_packages PACKAGE...: by apt where this machine lets us, else the command that would do it.
install_packages() {
    if ! command -v apt-get >/dev/null; then
        die "missing: $*; install what your system calls these Debian packages"
    elif [ "$(id -u)" != 0 ]; then
        die "missing: $*; run: sudo apt-get install $*"
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"; } </dev/null >/dev/null ||
        die "apt-get install $* failed; see its messages above"
}

# The first Python that is new enough; PYTHON names another.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # Itself, and not a link or a launcher: these differ with PATH, and the environment would be made anew.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    return 1
}

# ensure_environment EXTRA: the environment with what pyproject.toml asks for, and its EXTRA unless empty; activated.
# A stamp per EXTRA, made of all that decides the contents, tells that nothing is left to do.
ensure_environment() {
    local extra=$1 python stamp wanted
    python=$(find_python) || die "no Python 3.11 or newer (${PYTHON:-python3}); install one, or set PYTHON to it"
    stamp=$venv/hartbeat-stamp${extra:+-$extra}
    wanted=$({ cat "$root/pyproject.toml"; echo "$root $python"; "$python" -V; } | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        make_environment "$python" "$extra" "$stamp" "$wanted"
    fi
    PATH=$venv/bin:$PATH
    export PATH VIRTUAL_ENV=$venv
}

make_environment() {
    local python=$1 extra=$2 stamp=$3 wanted=$4 lock
    mkdir -p "$venv" || die "$venv: cannot be made; set HARTBEAT_VENV to a writable directory"
    # Two runs at once: the second waits here, and then finds the stamp.
    exec {lock}>"$venv/hartbeat-lock"
    flock "$lock"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null || install_packages "$(venv_package "$python")"
        say "making the Python environment in $venv"
        rm -f "$venv"/hartbeat-stamp*
        "$python" -m venv "$venv" </dev/null >&2 || die "$python -m venv $venv failed; see its messages above"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root${extra:+[$extra]}" \
            </dev/null >&2 || die "pip could not install Hartbeat into $venv; see its messages above"
        printf '%s\n' "$wanted" >"$venv/hartbeat-stamp"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    exec {lock}>&-
}

# python3-venv is for Debian's default Python only; each version has a package of its own.
venv_package() {
    "$1" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'
}
