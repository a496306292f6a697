#!/usr/bin/env bash
# Trains a small network under torchrun on two "nodes": network namespaces with an address each. Compares the run with one
# of two processes on one machine, step by step. Needs root, `ip` and a torchrun of PyTorch 2.13; takes a minute.
# Usage: scripts/two_nodes.sh PROGRAM TORCHRUN
set -euo pipefail

program=$(realpath "$1") torchrun=$2
work=$(mktemp -d)
nodes=(shipreid-a shipreid-b)

clean() {
    for node in "${nodes[@]}"; do ip netns del "$node" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT

for node in "${nodes[@]}"; do ip netns add "$node"; done
ip link add shipreid-va type veth peer name shipreid-vb
ip link set shipreid-va netns "${nodes[0]}"
ip link set shipreid-vb netns "${nodes[1]}"
ip -n "${nodes[0]}" addr add 10.93.0.1/24 dev shipreid-va
ip -n "${nodes[1]}" addr add 10.93.0.2/24 dev shipreid-vb
for end in 0/shipreid-va 1/shipreid-vb; do
    ip -n "${nodes[${end%/*}]}" link set "${end#*/}" up
    ip -n "${nodes[${end%/*}]}" link set lo up
done

"$program" synth --ids 16 --pairs 1 --views 2 --out "$work/ships" >/dev/null
cat >"$work/train.toml" <<TOML
seed = 5
objective = "fine_tune"
data = { root = "$work/ships/synthetic_hoss", loader_threads = 1 }
model = { preset = "tiny", size_token = true, drop_path = 0.1 }
start = { from = "scratch" }
batch = { images = 8, images_per_identity = 4 }
optimizer = { kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }
schedule = { base_rate = 1e-3, warm_up_epochs = 1, epochs = 4 }
checkpoint = { epochs = 1, keep = 2 }
TOML
# Sums depend on the number of threads.
export OMP_NUM_THREADS=1

"$program" train --local "$work/train.toml" --out "$work/one" --processes 2 >"$work/one.log"
ranks=()
for rank in 0 1; do
    ip netns exec "${nodes[$rank]}" "$torchrun" --nnodes 2 --nproc-per-node 1 --node-rank "$rank" \
        --master-addr 10.93.0.1 --master-port 29400 --no-python -- \
        "$program" train --local "$work/train.toml" --out "$work/two" >"$work/two-$rank.log" 2>&1 &
    ranks+=($!)
done
for rank in "${ranks[@]}"; do
    wait "$rank" || { tail -n 20 "$work"/two-*.log; exit 1; }
done
cmp "$work/one/events.jsonl" "$work/two/events.jsonl"
echo "two nodes take the steps of two processes on one machine: $(wc -l <"$work/one/events.jsonl") events are alike"
