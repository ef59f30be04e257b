#!/bin/sh
# openvino.sh FOLDER: an environment in FOLDER with OpenVINO and optimum-intel, whose transformers is another
# version than ours. Then: RIDGELINE_OPENVINO_PYTHON=FOLDER/bin/python python -m benchmarks.peers
set -eu
"${PYTHON:-python3}" -m venv "$1"
"$1/bin/pip" install --quiet torch 'optimum-intel[openvino,nncf]'
