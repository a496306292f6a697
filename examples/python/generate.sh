#!/bin/sh
# Generates the client's modules and their types into this folder.
cd "$(dirname "$0")" || exit
# [generate]
# pip install grpcio grpcio-tools grpcio-status mypy-protobuf
# pip install types-grpcio types-grpcio-status types-protobuf     # for a type checker
python -m grpc_tools.protoc --proto_path=../../proto --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
    ../../proto/shipreid/v1/*.proto
# [/generate]
