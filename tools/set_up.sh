#!/bin/sh
# Creates the virtual environment and installs the package with everything that development needs.
# usage: tools/set_up.sh PYTHON VENV      (make calls it; a second run only installs what changed)
set -eu
python=$1
venv=$2
cpu_index=https://download.pytorch.org/whl/cpu

command -v "$python" >/dev/null 2>&1 || {
    echo "No Python: \`$python\` is not on the PATH. Install Python 3.10 to 3.13, or name one: make PYTHON=..." >&2
    exit 1
}
"$python" -I src/regional_inductor/toolchain.py

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt "$@"; }

# Linux wheels of torch on PyPI bring gigabytes of CUDA packages; the CPU build is on an index of PyTorch's own.
# Where that is out of reach, pip takes what its own configuration offers.
set --
if [ "$(uname -s)" = Linux ]; then
    if "$venv/bin/python" -c "import urllib.request as r; r.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
        set -- --extra-index-url "$cpu_index"
    else
        echo "$cpu_index is out of reach; torch comes from where pip is configured to look."
    fi
fi
echo "Installing into $venv (some minutes, once) ..."
pip "$@" torch
# The build tools are pinned too, hence no isolated build.
pip hatchling editables
pip --no-build-isolation --editable ".[bench,demo,dev,docs]"
