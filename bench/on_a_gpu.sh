#!/usr/bin/env bash
# All that is to be measured on one GPU but the table, some ten minutes on a large one:
#
#   bench/on_a_gpu.sh OUT [PYTHON]
#
# tests with the marker gpu; speed, memory and kernels of training and search; a whole search of 200 epochs on
# 12,400 images of 32 x 32. Each part goes on where another failed; OUT holds what they printed, and JSON.
# The table of losses: python bench/gpu.py --table --data DIR --out FOLDER --jobs 8 [--subset short]
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
failed=0
part() {
  local name=$1
  shift
  echo "== $name: $*"
  timeout 420 "$@" > "$out/$name.txt" 2>&1 || { failed=1; echo "failed"; }
  tail -n 12 "$out/$name.txt"
}
part tests "$python" -m pytest -q -m "gpu and not slow" -p no:cacheprovider tests/test_devices.py
part speed "$python" bench/gpu.py --quick --augment --json "$out/speed.json"
part compiled "$python" bench/gpu.py --quick --augment --compile --channels-last \
  --precision bf16-mixed --json "$out/compiled.json"
part whole "$python" bench/gpu.py --whole --augment --epochs "${EPOCHS:-200}" --batch 128 \
  --precision bf16-mixed --json "$out/whole.json"
exit $failed
