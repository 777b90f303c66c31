# Sourced by examples/quickstart/run.sh and tests/run.sh: creates (once) and activates the one
# virtual environment of this checkout, .venv, with the tested versions of constraints.txt.
# Sets REPO to the root of the checkout.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

_install() {
    local venv="$REPO/.venv" fingerprint python
    fingerprint="$(cat "$REPO/constraints.txt" "$REPO/setup.py" "$REPO/examples/environment.sh" \
        "$REPO"/fairseq_speedup/inference/kernels/*.[ch] | cksum)"
    if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$fingerprint" ]; then
        return 0
    fi
    if [ ! -x "$venv/bin/python" ]; then
        if ! python="$(_find_python)"; then
            echo "fairseq_speedup needs Python 3.11 or 3.12 with pip and venv; found: $(python3 --version 2>/dev/null || echo no python3)" >&2
            exit 1
        fi
        echo "== creating the virtual environment $venv ($("$python" --version))"
        "$python" -m venv "$venv" || return 1
    fi
    # torch first and by its exact version: an open range may bring gigabytes of CUDA.
    echo "== installing torch"
    "$venv/bin/python" -m pip install --progress-bar off -q -c "$REPO/constraints.txt" torch || return 1
    echo "== installing fairseq_speedup and what it needs"
    "$venv/bin/python" -m pip install --progress-bar off -q -c "$REPO/constraints.txt" \
        -e "$REPO[fairseq,quickstart,test]" || return 1
    # fairseq asks for torchaudio, which no speech SSL model needs. Beside another build of torch than
    # its own (the CPU's) it cannot be loaded, and transformers loads it wherever it is installed.
    if ! "$venv/bin/python" -c "import torchaudio" >/dev/null 2>&1; then
        echo "== taking out torchaudio, which does not fit this build of torch"
        "$venv/bin/python" -m pip uninstall -q -y torchaudio || return 1
    fi
    echo "$fingerprint" >"$venv/.installed"
}

if ! _install; then
    echo "installation failed: see the lines above" >&2
    exit 1
fi
# shellcheck disable=SC1091
source "$REPO/.venv/bin/activate"
