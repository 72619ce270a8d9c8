#!/usr/bin/env bash
# Everything that a GPU has to show, in one go, in under ten minutes: benchmarks/gpu.sh
#
# Needs a checkout, a Python with the dependencies (PYTHON names it, default .venv/bin/python or python3) and a GPU; no
# slides but those that `kin sample` makes, no network. The results are in benchmarks/results/<device>-<date>/. A part
# that fails, or is left out since time is up (BUDGET, seconds), is told in summary.txt and stops nothing else. PARTS, a
# regular expression, chooses parts by name. DEVICE=cpu and the variables below make it a short rehearsal.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_WAIT_POLICY=PASSIVE
device=${DEVICE:-cuda}
precision=${PRECISION:-bf16}
width=${WIDTH:-64}
blocks=${BLOCKS:-9}
size=${SIZE:-8192}               # of the slide in the full runs
small=${SMALL:-4096}             # and in those that compare batch sizes
sides=${SIDES:-4096,16384,65536} # of the slides whose memory is compared
batches=${BATCHES:-1 4 16 32}
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
failed=0

part() { # part NAME COMMAND …: its output in NAME.txt, its time in summary.txt
  local label=$1 start=$SECONDS
  shift
  [[ $label =~ ${PARTS:-.} || $label == tables ]] || return 0
  if ((SECONDS > budget)) && [ "$label" != tables ]; then
    echo "$label: left out, $budget s are over" >> "$out/summary.txt"
    return 0
  fi
  echo "== $label" >&2
  if "$@" > "$out/$label.txt" 2> "$out/$label.err"; then
    echo "$label: $((SECONDS - start)) s" >> "$out/summary.txt"
    rm -f "$out/$label.err"
  else
    echo "$label: FAILED after $((SECONDS - start)) s: $(tail -n 1 "$out/$label.err")" >> "$out/summary.txt"
    failed=1
  fi
}

bench() { # bench NAME OPTION …: the numbers in NAME.json
  local label=$1
  shift
  part "$label" "$python" -m kin_cli bench --device "$device" --precision "$precision" --blocks "$blocks" \
    --width "$width" --json "$@"
  [ ! -s "$out/$label.txt" ] || mv -f "$out/$label.txt" "$out/$label.json"
}

{
  date -u
  git rev-parse HEAD 2> /dev/null
  "$python" -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())'
  nvidia-smi 2> /dev/null
  lscpu 2> /dev/null | grep -E "Model name|^CPU\(s\)"
} > "$out/machine.txt"

# in the order of what matters most
bench cut --architecture cut --size "$size"
part memory "$python" benchmarks/memory.py --sides "$sides" --width "$width" --blocks "$blocks" --tissue auto
part gpu-tests "$python" -m pytest -q -rs -m gpu tests
bench cyclegan --architecture cyclegan --size "$size" --quick
bench cut-measuring-256 --architecture cut --size "$size" --measure-size 256 --quick
part profile "$python" benchmarks/profile_layers.py --device "$device" --precision "$precision" --width "$width" \
  --blocks "$blocks"
for batch in $batches; do
  bench "cut-eager-batch-$batch" --architecture cut --size "$small" --batch-size "$batch" --quick --compile off
done
bench cut-eager-fp32 --architecture cut --size "$small" --precision fp32 --quick --compile off
bench urust-eager --architecture urust --size "$small" --quick --compile off
[ "$device" = cpu ] || part profile-compiled "$python" benchmarks/profile_layers.py --device "$device" --compile \
  --precision "$precision" --width "$width" --blocks "$blocks"
part tables "$python" benchmarks/report_bench.py "$out"
cat "$out/summary.txt" "$out/tables.txt"
exit $failed
