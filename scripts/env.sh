# Sourced by the scripts beside it: makes or reuses .venv with the extras named in "$@".
# Nothing is installed again when pyproject.toml, constraints.txt and the extras are as they were.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.13 python3.14 \
        "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "RIPPLe needs Python 3.12 or newer (lsst-images does) and found none." >&2
    echo "Get one with 'uv python install 3.12', 'pyenv install 3.12' or 'conda create -n ripple python=3.12'," >&2
    echo "then run this again, or name it: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

prepare() {
    local extras=$1 want have python
    want=$(cat pyproject.toml constraints.txt | cat - <(echo "$extras") | sha256sum | cut -d' ' -f1)
    have=$(cat .venv/.installed 2>/dev/null || true)
    if [ "$want" = "$have" ] && .venv/bin/python -c 'import ripple' >/dev/null 2>&1; then
        return 0
    fi
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
        python=$(find_python) || exit 2
        echo "==> making .venv with $("$python" --version)" >&2
        rm -rf .venv
        "$python" -m venv .venv
    fi
    echo "==> installing ripple[$extras] (the first time takes minutes where PyTorch is among it)" >&2
    # uv is many times faster than pip; pip does the same where uv cannot be had. Unlike pip, uv compiles no
    # bytecode unless told to: where PYTHONDONTWRITEBYTECODE is set, every start of Python would do it again.
    if .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8" 2>/dev/null &&
        .venv/bin/uv pip install --compile-bytecode --python .venv/bin/python -c constraints.txt -e ".[$extras]"; then
        :
    else
        .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$extras]"
    fi
    echo "$want" >.venv/.installed
}
