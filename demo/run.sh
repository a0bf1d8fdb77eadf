#!/usr/bin/env bash
# The whole job: export a checkpoint, serve it on Triton, ask about a picture, stream the answer.
# Usage: demo/run.sh [CHECKPOINT [IMAGE [QUESTION]]]; VITRAIL names the command, PORT the server's gRPC port.
set -euo pipefail
cd "$(dirname "$0")/.."

checkpoint=${1:-demo/checkpoint}
image=${2:-demo/receipt.png}
question=${3:-What is the total?}
vitrail=${VITRAIL:-vitrail}
port=${PORT:-18001}
artifacts=models/demo

show() { printf '\n$ %s\n' "$*" >&2; "$@"; }

show "$vitrail" export "$checkpoint" --out "$artifacts" --precision fp32

printf '\n$ %s\n' "$vitrail serve $artifacts --grpc-port $port" >&2
"$vitrail" serve "$artifacts" --grpc-port "$port" --http-port $((port - 1)) --metrics-port $((port + 1)) &
server=$!
trap 'kill -INT $server 2>/dev/null; wait $server || true' EXIT
while kill -0 $server && ! "$vitrail" info "127.0.0.1:$port" >/dev/null 2>&1; do sleep 0.5; done

show "$vitrail" ask "$image" -q "$question" --url "127.0.0.1:$port" --max-tokens 24
