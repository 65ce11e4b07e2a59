#!/usr/bin/env bash
# Creates .venv and installs what requirements/*.lock pins, then Choir itself as an editable install.
# Usage: requirements/install.sh PYTHON. Returns at once when nothing has changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."

python="$1"
venv=.venv
stamp="$venv/.installed"
torch_index=https://download.pytorch.org/whl/cpu

platform="$(uname -s)-$(uname -m)"
if [[ "$platform" != Linux-x86_64 ]]; then
    echo "Choir's locked environment is for Linux on x86-64; this machine is $platform." >&2
    exit 1
fi

state="$(cat pyproject.toml requirements/*.lock requirements/install.sh | sha256sum) $PWD"
if [[ -x "$venv/bin/python" && -f "$stamp" && "$(cat "$stamp")" == "$state" ]]; then
    exit 0
fi

if [[ -z "$python" ]]; then
    echo "Choir needs Python 3.11, 3.12 or 3.13, and none was found: install one, or name it with 'make PYTHON=/path/to/python3.11'." >&2
    exit 1
fi

started=$SECONDS
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$python" -m venv "$venv"; then
        echo "$python could not create $venv; on Debian and Ubuntu its venv module is a package of its own (python3-venv)." >&2
        exit 1
    fi
fi
version="$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

pip_setting() {
    pip config list | sed -nE "s/^(global|install|:env:)\\.$1='(.*)'\$/\\2/p" | sed 's/\\n/ /g'
}

# uv takes a third of pip's time, but reads no pip.conf: what pip is told about indexes is handed on to it. As with pip,
# no index is trusted more than another: the lock has hashes. Compiled now, because with PYTHONDONTWRITEBYTECODE, which
# many images set, each process of the service would compile for itself.
uv_options=(--quiet --compile-bytecode --python "$venv/bin/python" --index-strategy unsafe-best-match)

configure_uv() {
    local option value
    for option in index-url extra-index-url find-links; do
        for value in $(pip_setting "$option"); do
            uv_options+=("--$option" "$value")
        done
    done
    value="$(pip_setting cert | head -n 1)"
    if [[ -n "$value" ]]; then
        export SSL_CERT_FILE="$value"
    fi
}

# The lock is complete, so nothing may be resolved, and nothing pre-installed may be trusted more than the lock.
install() {
    if [[ -x "$venv/bin/uv" ]]; then
        "$venv/bin/uv" pip install --no-deps "${uv_options[@]}" "$@"
    else
        pip install --no-deps --progress-bar off -qq "$@"
    fi
}

install_torch() {
    if [[ "$version" == 3.11 ]]; then
        install --require-hashes -r requirements/torch.lock "$@"
    else
        install torch==2.13.0+cpu "$@"
    fi
}

echo "Installing Choir's environment into $venv (Python $version); this takes a few minutes the first time."
if pip install --no-deps -qq --require-hashes -r requirements/uv.lock 2>"$venv/uv-install.log"; then
    configure_uv
else
    echo "uv could not be installed ($venv/uv-install.log says why); pip does it, more slowly."
fi
if ! install_torch 2>"$venv/torch-install.log"; then
    echo "The configured package indexes have no torch 2.13.0+cpu; taking it from $torch_index."
    if ! install_torch --index-url "$torch_index"; then
        cat "$venv/torch-install.log" >&2
        echo "torch 2.13.0+cpu could be installed neither from the configured package indexes nor from $torch_index." >&2
        exit 1
    fi
fi
echo "  torch: $((SECONDS - started)) s"
install --require-hashes -r requirements/cpu.lock
echo "  locked packages: $((SECONDS - started)) s"
install --no-build-isolation --editable .
echo "$state" >"$stamp"
echo "Installed in $((SECONDS - started)) s."
