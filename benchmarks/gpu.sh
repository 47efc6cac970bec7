#!/usr/bin/env bash
# Everything that a GPU is needed for, without network: build from this tree, the tests marked `cuda`,
# compute-sanitizer, the benchmarks, and PQK's CIFAR-10 recipe. The limits of the stages make nine minutes in all.
#
#   benchmarks/gpu.sh                    all stages
#   benchmarks/gpu.sh build tests        some of them
#
# Needs torch for CUDA, nvcc, and the build's tools (scikit-build-core, pybind11, cmake, ninja; pytest for the tests),
# from the environment or from a folder of wheels, PQK_WHEELS. PQK_DATA_DIR holds CIFAR-10 as cifar-10-batches-bin or in
# archives; without it the recipe is left out, loudly. PQK_ARCHITECTURES (90-real), PQK_RECIPE_STEPS (the recipe's) and
# PQK_RESULTS (benchmarks/results/gpu) have defaults. Each stage has a limit of time, and its result is written as soon
# as it ends: stages.jsonl, a log for each, and the JSON files of the benchmarks. Ends with 1 if a stage failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

results=${PQK_RESULTS:-benchmarks/results/gpu}
mkdir -p "$results"
results=$(cd "$results" && pwd)
python=${PYTHON:-python3}
wanted=("$@")
failed=()
: >"$results/stages.jsonl"

# stage NAME SECONDS COMMAND...: runs it unless others were asked for; keeps its output, time and exit status.
stage() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then return 0; fi
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
  timeout --kill-after=10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null
  status=$?
  tail -n 25 "$results/$name.log"
  printf '{"stage": "%s", "status": %d, "seconds": %d, "limit": %d}\n' "$name" "$status" "$((SECONDS - begin))" \
    "$limit" >>"$results/stages.jsonl"
  ((status == 0)) || failed+=("$name ($status)")
  return "$status"
}

build() {
  if [[ -n ${PQK_WHEELS:-} ]]; then
    "$python" -m pip install --quiet --no-index --no-deps "$PQK_WHEELS"/*.whl || return
  fi
  "$python" -m pip install --no-build-isolation --no-deps --no-index --verbose -C build-dir=build/gpu \
    -C cmake.define.PQK_CUDA=ON -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=${PQK_ARCHITECTURES:-90-real}" . &&
    (cd / && "$python" -c "import json, pqk_ext; print(json.dumps(pqk_ext.build_info(), indent=2))")
}

device() {
  set -o pipefail
  command -v nvidia-smi >/dev/null && nvidia-smi
  (cd benchmarks && PYTHONPATH=. "$python" -P -c "import json, paired_cuda; print(json.dumps(paired_cuda.gpu(), indent=2))") |
    tee "$results/device.json"
}

# -P: the installed package, not the tree, which has no libraries.
tests() { PQK_REQUIRE_CUDA=1 "$python" -P -m pytest -m cuda -q -p no:cacheprovider --maxfail=20 --durations=10 tests; }

sanitizer() {
  local tool
  tool=$(command -v compute-sanitizer || find /usr/local/cuda*/bin -name compute-sanitizer 2>/dev/null | head -1)
  if [[ -z $tool ]]; then
    echo "NOT DONE: compute-sanitizer is not here"
    return 0
  fi
  export PQK_REQUIRE_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local file status found=0
  for file in tests/ops/test_*_cuda.py tests/runtime/test_engine_cuda.py::test_convolutions; do
    timeout 20 "$tool" --tool memcheck --error-exitcode 9 \
      "$python" -P -m pytest -m cuda -q -x -p no:cacheprovider "$file"
    status=$?
    if ((status == 124)); then echo "NOT FINISHED: $file"; elif ((status)); then found=1; fi
  done
  return "$found"
}

# Training from nothing to a measured file. If a step cannot be recorded as a graph, that is said, and it trains without.
recipe() {
  local data=${PQK_DATA_DIR:-/nonexistent} run="$results/pqk-resnet20-gpu"
  if [[ -f $data/cifar10_train1.npz.xz ]]; then
    "$python" -P tools/unpack_archives.py "$data" build/gpu-data cifar10 >/dev/null || return
    data=build/gpu-data
  fi
  if [[ ! -d $data/cifar-10-batches-bin ]]; then
    echo "NOT DONE: no CIFAR-10 in PQK_DATA_DIR"
    return 0
  fi
  local train=("$python" -P -c "import sys; from pqk_ext.cli import main; sys.exit(main())" train --device cuda
    --recipe pqk-resnet20-gpu --data "cifar10:$data" --json "$results/recipe.json")
  [[ -n ${PQK_RECIPE_STEPS:-} ]] && train+=(--set "training.steps=$PQK_RECIPE_STEPS")
  "${train[@]}" --run-dir "$run" && return
  echo "WITHOUT CUDA GRAPHS:"
  "${train[@]}" --set training.cuda_graphs=false --run-dir "$run-eager"
}

export -f build device tests sanitizer recipe
export python results

stage build 180 bash -c build || { ((${#wanted[@]})) || exit 1; }
stage device 20 bash -c device
stage tests 80 bash -c tests
stage fake_quantize 25 "$python" benchmarks/ops/bench_fake_quantize.py --device cuda
stage int8 30 "$python" benchmarks/gpu/bench_int8_cuda.py
stage decode 20 "$python" benchmarks/gpu/bench_decode_cuda.py
stage coded_linear 15 "$python" benchmarks/gpu/bench_coded_linear_cuda.py
stage engine 40 "$python" benchmarks/gpu/bench_engine_cuda.py resnet8 ds_cnn resnet20
stage train_step 45 "$python" benchmarks/gpu/bench_step_cuda.py
stage sanitizer 60 bash -c sanitizer
stage recipe "$((SECONDS < 500 ? 530 - SECONDS : 30))" bash -c recipe # what is left of nine minutes

printf '\n'
cat "$results/stages.jsonl"
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
