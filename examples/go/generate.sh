#!/bin/sh
# Generates the client's package into this folder.
cd "$(dirname "$0")" || exit
# [generate]
# apt-get install golang-go protoc-gen-go protoc-gen-go-grpc        # or `go install` of both plugins
protoc --proto_path=../../proto --go_out=. --go-grpc_out=. ../../proto/shipreid/v1/*.proto
# [/generate]
