#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than ten minutes:
#   benchmarks/gpu_suite.sh [FOLDER]        results go to FOLDER (unset: $OUT, or benchmarks/results/gpu)
#   benchmarks/gpu_suite.sh --dry [FOLDER]  the same command lines at toy sizes on a CPU, to see that each is right
# Parts: tests marked gpu, kernel benchmark, one optimizer step and its profile, Stage 1 from table to
# metrics. A part that fails does not stop the others; the table at the end says what passed, and
# the exit code is 1 if any failed. Of each part come its numbers, of most its picture; the tables
# are in suite.log.
# Needs Python with torch, triton, transformers 5 and peft. What else is missing can lie as wheels in
# a folder named by WHEELS: deepspeed, hjson, zarr, donfig, numcodecs, google-crc32c, polars,
# polars-runtime-32, pydantic, pydantic-core, annotated-types, typing-inspection, rdkit, msgpack and
# einops; it is installed into a temporary folder. PYTHON names the interpreter (unset: python3).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

dry=0
if [ "${1:-}" = --dry ]; then dry=1; shift; fi
out=${1:-${OUT:-benchmarks/results/gpu}}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit 2
log=$out/suite.log
: >"$log"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# DeepSpeed compiles here; were a run killed meanwhile, its lock would make the next process wait without end.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$work/extensions}
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl >>"$log" 2>&1 || { tail "$log"; exit 2; }
    export PYTHONPATH="$PWD:$work/site"
fi
if [ "$dry" = 1 ]; then
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    size=tiny device=cpu patients=(--rows-per-patient 24) profile=(--quick) train=(--set train.epochs=1 --set train.batch_rows=256 --set train.precision=fp32
        --set train.compile=true)
else
    unset DS_ACCELERATOR
    export EMBEDCACHE_GPU=1
    size=polybert device=cuda patients=() train=() profile=()
fi
config=(--config configs/stage1.yaml --set "data.path=$work/cohort.parquet" --set "encoder.source=$work/encoder" --set "cache.path=$work/cache.zarr"
    --set "run.dir=$work/run")
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)

names=() took=() ended=()
part() { # NAME LIMIT_S COMMAND...: run a command, log it, remember how long it took and how it ended
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    printf '\n== %s: %s\n' "$name" "$*" | tee -a "$log"
    timeout "$limit" "$@" >"$work/part.log" 2>&1
    status=$?
    cat "$work/part.log" >>"$log"
    names+=("$name") took+=($((SECONDS - start)))
    case $status in
        0) ended+=(pass) ;;
        124) ended+=("FAIL (over $limit s)") ;;
        *) ended+=("FAIL ($status)") ;;
    esac
    if [ "$status" != 0 ]; then tail -n 15 "$work/part.log"; fi
}

versions='import importlib.metadata as m, torch
for name in ("torch", "triton", "transformers", "peft", "deepspeed", "zarr", "numcodecs", "polars", "pydantic", "rdkit"): print(name, m.version(name))
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
part "packages" 60 "$python" -c "$versions"
if [ "$dry" = 0 ]; then
    part "a GPU is visible" 60 "$python" -c 'import torch; torch.ones(1, device="cuda")'
fi
# The shape checks of pyproject.toml need beartype and are the CPU suite's business.
part "tests" 240 "$python" -m pytest tests -m gpu -p no:cacheprovider -o "addopts=--import-mode=importlib --strict-markers -ra --durations=10"
part "kernel benchmark" 180 "$python" -m benchmarks kernels --quick --json "$out/kernels.json"
if [ "$dry" = 1 ]; then
    part "step benchmark" 60 "$python" -m benchmarks throughput --help
else
    part "step benchmark" 240 "$python" -m benchmarks throughput --quick --precision bf16 --json "$out/throughput_bf16.json"
fi
part "step profile" 180 "$python" -m benchmarks profile "${profile[@]}" --json "$out/profile_bf16.json"
part "stage 1: cohort" 60 "$python" -m jobs.make_cohort --out "$work/cohort.parquet" --noise-free "$work/oracle.parquet" "${patients[@]}"
part "stage 1: encoder" 60 "$python" -m jobs.make_encoder --out "$work/encoder" --size "$size"
part "stage 1: cache" 90 "$python" -m jobs.build_cache "${config[@]}"
part "stage 1: training" 180 "$python" -m jobs.train "${config[@]}" "${train[@]}"
part "stage 1: evaluation" 60 "$python" -m jobs.evaluate_model --run "$work/run" --oracle "$work/oracle.parquet" --device "$device"
part "stage 1: tables" 60 "$python" -m benchmarks stage1 --run "$work/run" --trained-at "$commit" --json "$out/stage1.json"

rm -f "$out"/{kernels,throughput_bf16,stage1,profile_bf16}.md "$out/profile_bf16.png" # eight files stay; what lends a GPU may give back no more
failed=0
{
    printf '\n%-24s %8s  %s\n' part seconds result
    for i in "${!names[@]}"; do
        printf '%-24s %8d  %s\n' "${names[$i]}" "${took[$i]}" "${ended[$i]}"
    done
    printf '%-24s %8d\n' all "$SECONDS"
} | tee -a "$log"
for end in "${ended[@]}"; do
    if [ "$end" != pass ]; then failed=1; fi
done
exit $failed
