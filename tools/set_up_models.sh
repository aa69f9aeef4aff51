#!/bin/sh
# Installs what the sweep over real models needs beside what development installs, into a folder of its own.
# usage: tools/set_up_models.sh VENV
# Of its own, because torchvision's wheel on PyPI is built for torch with CUDA: beside a CPU build it doesn't import,
# and transformers would no longer import either, since it tries (tests/models/torchvision_operators.py).
set -eu
venv=$1
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt "$@"; }
pip importlib_metadata requests
pip --no-deps --upgrade --target "$venv/models" diffusers timm torchvision
