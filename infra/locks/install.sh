#!/bin/sh
# Makes .venv from the lock: Python 3.11, every package by version and hash, this checkout as editable.
# Called by make; safe to call again, and in a checkout whose path has spaces in it.
# PYTHON=/path/to/python3.11 chooses the interpreter.
set -eu
cd "$(dirname "$0")/../.."
exec </dev/null

venv_python=.venv/bin/python
lock=infra/locks/requirements.txt

say() { printf 'setup: %s\n' "$*"; }

is_python_311() {
    "$@" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        if [ -n "$candidate" ] && is_python_311 "$candidate" \
            && "$candidate" -c 'import ensurepip' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    cat >&2 <<'MESSAGE'
setup: Python 3.11 with its venv module is needed and was not found
setup: (looked for $PYTHON, python3.11, python3, python). Install it, then run make again:
setup:   Debian, Ubuntu   apt-get install python3.11 python3.11-venv
setup:   macOS            brew install python@3.11
setup:   anywhere         uv python install 3.11, or pyenv install 3.11
setup: or name it: make PYTHON=/path/to/python3.11
MESSAGE
    exit 1
}

make_venv() {
    python=$(find_python)
    say "making .venv with $("$python" --version 2>&1)"
    rm -rf .venv
    "$python" -m venv .venv
}

pip() {
    "$venv_python" -m pip --disable-pip-version-check --no-input --quiet "$@"
}

# uv takes a tenth of pip's time, but doesn't read pip's settings: it is told the index and the
# certificates that pip uses. Whatever goes wrong with it, pip does the same work.
uv() {
    index=${PIP_INDEX_URL:-$("$venv_python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
    if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"; fi
    "$venv_python" -m uv --quiet --no-progress "$@" --python "$venv_python"
}

if ! is_python_311 "$venv_python" || ! "$venv_python" -m pip --version >/dev/null 2>&1; then
    make_venv
fi

say "installing $(grep -c '==' "$lock") packages from the lock, each checked by its hash"
say "(about 1.5 GB; some 15 s with a warm cache, one to five minutes without)"
if pip install --no-deps --require-hashes --only-binary :all: -r infra/locks/uv.txt \
    && uv pip install --no-deps --require-hashes -r "$lock" \
    && uv pip install --no-deps --no-build-isolation --editable .; then
    :
else
    say "uv could not do it; pip does it now, which takes a few minutes"
    pip install --no-deps --require-hashes -r "$lock"
    pip install --no-deps --no-build-isolation --editable .
fi
touch .venv/.installed
say "done: .venv is ready"
