#!/usr/bin/env bash
# Runs all that needs a CUDA GPU, and keeps what it found: the tests marked `gpu`, and the benchmark.
#
#     scripts/gpu_run.sh [python] [arguments of benchmarks.gpu ...]
#
# The Python is one that has pagedkv[test] and a torch for CUDA; by default that of .venv. Files are
# named after the day: DATE-gpu-tests.txt, DATE-gpu-tests.xml and DATE-gpu.json, in
# benchmarks/results/, or in $RESULTS. The exit status is not 0 if a test has failed.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
[ $# -gt 0 ] && shift
results=${RESULTS:-benchmarks/results}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$python finds no CUDA device: give a Python whose torch is built for CUDA, on a machine with a GPU" >&2
    exit 2
fi
mkdir -p "$results"
today=$(date -u +%F)
log=$results/$today-gpu-tests.txt

{
    date -u +%FT%TZ
    git rev-parse HEAD 2>/dev/null
    nvidia-smi --query-gpu=index,name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current \
        --format=csv 2>/dev/null
    "$python" - <<'PYTHON'
import platform

import torch

print(f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
for number in range(torch.cuda.device_count()):
    print(f"cuda:{number}: {torch.cuda.get_device_properties(number)}")
PYTHON
} > "$log"
cat "$log"

failed=0
"$python" -m pytest -m gpu -v --color=no --junit-xml="$results/$today-gpu-tests.xml" 2>&1 |
    tee -a "$log" || failed=1
"$python" -m benchmarks.gpu --json "$results/$today-gpu.json" "$@" || failed=1
exit $failed
