#!/usr/bin/env bash
# Everything that a GPU has to show, the most important first, in under ten minutes: benchmarks/gpu.sh
#
# Needs a checkout, a Python (PYTHON names it, default .venv/bin/python or python3) with torch and NumPy, a GPU, and the
# other dependencies: installed, or in benchmarks/gpu-wheels.tar.xz, which scripts/gpu_wheels makes where there is a
# network. No slides but those that `kin sample` makes. Each result is printed as it comes; all are in
# benchmarks/results/<device>-<date>/, in at most eight files. A part that fails, or is left out since time is up
# (BUDGET, seconds), says why and stops nothing else; so does Ctrl-C. PARTS, a regular expression, chooses parts by
# name. DEVICE=cpu and the variables below make it a short rehearsal.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
work=$(mktemp -d)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
if [ -f benchmarks/gpu-wheels.tar.xz ] && ! "$python" -c 'import cloup, openslide, pytest, scipy, tifffile' 2> /dev/null; then
  mkdir "$work/site" && tar -C "$work/site" -xJf benchmarks/gpu-wheels.tar.xz
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi
device=${DEVICE:-cuda}
precision=${PRECISION:-bf16}
width=${WIDTH:-64}
blocks=${BLOCKS:-9}
size=${SIZE:-8192}               # of the slide in the full runs
small=${SMALL:-4096}             # and in those that compare batch sizes
sides=${SIDES:-4096,16384} # of the slides whose memory is compared
batches=${BATCHES:-1 3 8 16 32}
budget=${BUDGET:-540}

name=$("$python" - "$device" <<'PY'
import re, sys, torch
from kin_cli.bench.run import machine
print(re.sub(r"[^a-z0-9]+", "-", machine(torch.device(sys.argv[1]))["device"].lower()).strip("-"))
PY
) || { echo "$python cannot import kin_cli and torch" >&2; exit 1; }
out=${RESULTS:-benchmarks/results}/$name-$(date +%Y-%m-%d)
mkdir -p "$out"
: > "$out/summary.txt"
rm -f "$out"/{tests,profile,memory}.txt
failed=0

say() { # to the screen and to summary.txt
  echo "$*" | tee -a "$out/summary.txt"
}

finish() { # also after Ctrl-C
  trap - EXIT INT TERM
  "$python" - "$work" "$out/runs.json" <<'PY'
import json, pathlib, sys
found = {}
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    try:
        found[file.stem] = json.loads(file.read_text())
    except ValueError:
        continue
pathlib.Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n")
PY
  "$python" benchmarks/report_bench.py "$work" > "$out/tables.txt" 2>> "$out/summary.txt"
  [ ! -f "$work/stages.png" ] || mv -f "$work/stages.png" "$out/stages.png"
  cat "$out/tables.txt"
  rm -rf "$work"
  exit $failed
}
trap finish EXIT
child=
stop() { # at once: bash runs a trap only when a command in the foreground has ended, so that parts run in the background
  trap - INT TERM
  failed=130
  [ -z "$child" ] || { kill "$child" 2> /dev/null; wait "$child" 2> /dev/null; }
  say "stopped"
  finish
}
trap stop INT TERM

part() { # part NAME FILE COMMAND …: its output at the end of FILE, its outcome in summary.txt and on the screen
  local label=$1 file=$2 start=$SECONDS
  shift 2
  [[ $label =~ ${PARTS:-.} ]] || return 0
  if ((SECONDS > budget)); then
    say "$label: left out, $budget s are over"
    return 0
  fi
  "$@" > "$work/out" 2> "$work/err" &
  child=$!
  if wait "$child"; then
    say "$label: $((SECONDS - start)) s"
  else
    say "$label: FAILED after $((SECONDS - start)) s: $(grep -hv '^ *$' "$work/out" "$work/err" | tail -n 1)"
    failed=1
  fi
  if [[ $file == *.json ]]; then
    mv -f "$work/out" "$file"
  else
    { echo "== $label"; cat "$work/out"; } >> "$file"
  fi
}

bench() { # bench NAME OPTION …: its numbers for runs.json, and the most important ones on the screen
  local label=$1
  shift
  part "$label" "$work/$label.json" "$python" -m kin_cli bench --device "$device" --precision "$precision" \
    --blocks "$blocks" --width "$width" --json "$@"
  [ ! -s "$work/$label.json" ] || "$python" - "$work/$label.json" <<'PY' | tee -a "$out/summary.txt"
import json, sys
try:
    found = json.load(open(sys.argv[1]))
except ValueError:
    sys.exit()
for stage in found["stages"]:
    if stage["fraction_of_product"] is not None:
        share = f"{100 * stage['fraction_of_product']:.0f} % of the matrix rate"
        print(f"  {stage['name']}: {1000 * stage['seconds_per_patch']:.2f} ms per patch, {share}")
print(f"  end to end: {found['end_to_end']['mpixel_per_s']:.1f} Mpx/s, {found['speedup']:.1f} times the plain loop")
PY
}

{
  date -u
  git rev-parse HEAD 2> /dev/null
  "$python" -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())'
  "$python" -c 'import triton; print("triton", triton.__version__)' 2> /dev/null
  nvidia-smi 2> /dev/null
  lscpu 2> /dev/null | grep -E "Model name|^CPU\(s\)"
} > "$out/machine.txt"

# under 90 seconds: are the kernels right, is the engine right, how fast is it
part kernels "$out/tests.txt" "$python" -m pytest -q -p no:cacheprovider -rs tests/norm/test_gpu.py
part gpu-tests "$out/tests.txt" "$python" -m pytest -q -p no:cacheprovider -rs -m gpu tests/passes/test_engine.py
bench first --architecture cut --size "$small" --quick
# in the order of what matters most
bench cut --architecture cut --size "$size"
part ends "$out/profile.txt" "$python" benchmarks/ends.py --device "$device" --precision "$precision" --width "$width"
part profile "$out/profile.txt" "$python" benchmarks/profile_layers.py --device "$device" --kernels \
  --precision "$precision" --width "$width" --blocks "$blocks"
part memory "$out/memory.txt" "$python" benchmarks/memory.py --sides "$sides" --width "$width" --blocks "$blocks" \
  --tissue auto
bench cyclegan --architecture cyclegan --size "$small" --quick
for batch in $batches; do
  bench "cut-batch-$batch" --architecture cut --size "$small" --batch-size "$batch" --quick
done
bench cut-without-kernels --architecture cut --size "$small" --quick --compile off
bench cut-fp32 --architecture cut --size "$small" --precision fp32 --quick
bench cut-measuring-256 --architecture cut --size "$small" --measure-size 256 --quick
bench urust --architecture urust --size "$small" --quick
