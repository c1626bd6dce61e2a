#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than ten minutes:
#   benchmarks/gpu_suite.sh [FOLDER]        results go to FOLDER (unset: $OUT, or benchmarks/results/gpu)
#   benchmarks/gpu_suite.sh --dry [FOLDER]  the same command lines at toy sizes on a CPU, to see that each is right
# PARTS chooses among: stage1 step tests naive kernels (unset: all, in this order). That is: Stage 1 from table to
# metrics; a step from Python and from a graph; the tests marked gpu; the naive steps beside it; the kernels alone.
# Each command leaves its numbers, its picture and a line in suite.log as it ends; one that fails stops none of the
# others, and the exit code is 1 if any failed. When TOTAL seconds (540) are over, what is left is not started.
# Needs Python with torch, triton, transformers 5 and peft. What else is missing can come through PYTHONPATH, or lie as
# wheels in a folder named by WHEELS: deepspeed, hjson, zarr, donfig, numcodecs, google-crc32c, polars,
# polars-runtime-32, pydantic, pydantic-core, annotated-types, typing-inspection, rdkit, msgpack and einops; they are
# installed into a temporary folder. PYTHON names the interpreter (unset: python3).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

dry=0
if [ "${1:-}" = --dry ]; then dry=1; shift; fi
out=${1:-${OUT:-benchmarks/results/gpu}}
parts=${PARTS:-stage1 step tests naive kernels}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit 2
log=$out/suite.log
: >"$log"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unset PYTHONDONTWRITEBYTECODE # or every process would compile what it imports again
# DeepSpeed compiles here; were a run killed meanwhile, its lock would make the next process wait without end.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$work/extensions}
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl >>"$log" 2>&1 || { tail "$log"; exit 2; }
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi
train=(--set train.compile=false) # it takes longer than the training
if [ "$dry" = 1 ]; then
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    total=${TOTAL:-900} size=tiny device=cpu patients=(--rows-per-patient 24) quick=(--quick) live=(per_step frozen) ours=(per_step) workers=
    train+=(--set train.epochs=1 --set train.batch_rows=256 --set train.precision=fp32)
else
    unset DS_ACCELERATOR
    export EMBEDCACHE_GPU=1
    total=${TOTAL:-540} size=polybert device=cuda patients=() quick=()
    live=(per_step frozen "per_step graph" "frozen graph") ours=("per_step graph")
    workers=$("$python" -c 'import xdist; print(8)' 2>/dev/null)
fi
config=(--config configs/stage1.yaml --set "data.path=$work/cohort.parquet" --set "encoder.source=$work/encoder" --set "cache.path=$work/cache.zarr"
    --set "run.dir=$work/run")
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)

failed=0
say() { # NAME SECONDS RESULT: one line of the table, on the screen and in the log
    printf '   %-22s %4d s  %s\n' "$@" | tee -a "$log"
}
run() { # NAME LIMIT_S COMMAND...: run a command, log it, say how long it took and how it ended
    local name=$1 limit=$2 start=$SECONDS status left=$((total - SECONDS)) result=pass
    shift 2
    if [ "$left" -lt 5 ]; then failed=1; say "$name" 0 "FAIL (not started: $total s are over)"; return; fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    if [ "$dry" = 1 ]; then limit=$left; fi
    printf '\n== %s: %s\n' "$name" "$*" | tee -a "$log"
    timeout "$limit" "$@" >"$work/command.log" 2>&1
    status=$?
    cat "$work/command.log" >>"$log"
    if [ "$status" != 0 ]; then failed=1 result="FAIL ($status)"; tail -n 15 "$work/command.log"; fi
    if [ "$status" = 124 ]; then result="FAIL (over $limit s)"; fi
    say "$name" "$((SECONDS - start))" "$result"
    rm -f "$out"/*.md # the tables are in the log
}

tests() {
    local files
    mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests)
    # Shape checks (beartype), time limits (pytest-timeout) and warnings as errors are the CPU suite's business.
    # -v: a run that its limit cuts short has still said which tests failed
    run "tests" 150 "$python" -m pytest "${files[@]}" -v -m gpu -p no:cacheprovider -o strict=false -o filterwarnings= \
        -o "addopts=--import-mode=importlib -ra --durations=10 --tb=short" ${workers:+-n "$workers"}
}
stage1() {
    run "stage 1: cohort" 30 "$python" -m jobs.make_cohort --out "$work/cohort.parquet" --noise-free "$work/oracle.parquet" "${patients[@]}"
    run "stage 1: encoder" 30 "$python" -m jobs.make_encoder --out "$work/encoder" --size "$size"
    run "stage 1: cache" 45 "$python" -m jobs.build_cache "${config[@]}"
    run "stage 1: training" 90 "$python" -m jobs.train "${config[@]}" "${train[@]}"
    run "stage 1: evaluation" 45 "$python" -m jobs.evaluate_model --run "$work/run" --oracle "$work/oracle.parquet" --device "$device" --no-baselines
    run "stage 1: tables" 45 "$python" -m benchmarks stage1 --run "$work/run" --trained-at "$commit" --json "$out/stage1.json"
}
# steps from Python take long where the host is slow: each half has its own command
step() { run "step benchmark" 100 "$python" -m benchmarks gpu "${quick[@]}" --json "$out/gpu_bf16.json" --modes "${live[@]}"; }
naive() { run "naive steps" 150 "$python" -m benchmarks gpu "${quick[@]}" --json "$out/gpu_naive_bf16.json" --modes naive_128 naive_longest per_microbatch "${ours[@]}"; }
kernels() { run "kernel benchmark" 60 "$python" -m benchmarks kernels --quick --json "$out/kernels.json"; }

versions='import importlib.metadata as m, torch
for name in ("torch", "triton", "transformers", "peft", "deepspeed", "zarr", "numcodecs", "polars", "pydantic", "rdkit"): print(name, m.version(name))
print(torch.ones(1, device="cuda").device and torch.cuda.get_device_name() if "'"$device"'" == "cuda" else "no GPU asked for")'
run "packages and device" 60 "$python" -c "$versions"
for part in $parts; do
    case $part in
        tests | stage1 | step | naive | kernels) "$part" ;;
        *) failed=1; say "$part" 0 "FAIL (no such part: tests stage1 step naive kernels)" ;;
    esac
done
say "all" "$SECONDS" "$([ "$failed" = 0 ] && echo pass || echo FAIL)"
exit $failed
