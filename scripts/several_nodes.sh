#!/usr/bin/env bash
# Fine-tune on several nodes whose scheduler tells each of them who it is, as FluxVLA's train.sh does. Written by hand.
#
#   scripts/several_nodes.sh --base-model-path nvidia/GR00T-N1.5-3B --dataset-path my_episodes --output-dir outputs/mine ...
#
# Started once on every node, with the same arguments, which go to scripts/finetune.py. The folders must lie on a disk
# that every node sees. Two families of variables are known, the first of which wins:
#
#   NPROC_PER_NODE  MLP_WORKER_GPU     processes of a node, one a GPU (1)
#   WORLD_SIZE      MLP_WORKER_NUM     nodes, not processes (1)
#   RANK            MLP_ROLE_INDEX     which node this is, from 0 (0)
#   MASTER_ADDR     MLP_WORKER_0_HOST  the first node, where all meet (localhost)
#   MASTER_PORT     MLP_WORKER_0_PORT  its port (29500)
set -euo pipefail
cd "$(dirname "$0")/.."

gpus=${NPROC_PER_NODE:-${MLP_WORKER_GPU:-1}}
nodes=${WORLD_SIZE:-${MLP_WORKER_NUM:-1}}
node=${RANK:-${MLP_ROLE_INDEX:-0}}
address=${MASTER_ADDR:-${MLP_WORKER_0_HOST:-localhost}}
port=${MASTER_PORT:-${MLP_WORKER_0_PORT:-29500}}

for number in "$gpus" "$nodes" "$node" "$port"; do
    if ! [[ $number =~ ^[0-9]+$ ]]; then
        echo "error: '$number' is not a number: expected processes ($gpus), nodes ($nodes), this node ($node) and port" \
            "($port) as numbers; see the head of $0 for the variables that say them." >&2
        exit 2
    fi
done
gpus=$((10#$gpus)) nodes=$((10#$nodes)) node=$((10#$node)) port=$((10#$port))  # 08 is eight, and no octal number
if (( node >= nodes )); then
    echo "error: this is node $node of $nodes: expected 0 to $((nodes - 1)); WORLD_SIZE and MLP_WORKER_NUM count nodes," \
        "RANK and MLP_ROLE_INDEX say which one this is." >&2
    exit 2
fi

if ! command -v torchrun > /dev/null; then
    echo "error: there is no program torchrun: it comes with torch; activate the environment that this kit is" \
        "installed in, such as with 'source .venv/bin/activate', on every node." >&2
    exit 2
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
exec torchrun --nproc_per_node="$gpus" --nnodes="$nodes" --node_rank="$node" \
    --master_addr="$address" --master_port="$port" scripts/finetune.py "$@"
