#!/bin/bash
# Translate every slide of a folder on this machine:
#
#   translate_folder.sh SLIDES OUTPUT [options of kin batch]
#
# Run it again after any interruption and it goes on. What became of each slide is in OUTPUT/kin-batch/status.csv.
# Exit codes: 0 all done; 1 some slides failed; 2 wrong use; 75 and 130 stopped (SIGTERM, Ctrl-C).
set -euo pipefail
if (($# < 2)); then
  echo "usage: translate_folder.sh SLIDES OUTPUT [options of kin batch]" >&2
  exit 2
fi
slides=$1 output=$2
shift 2
# exec: a signal sent to this script reaches kin only if kin takes its place.
exec kin batch "$slides" --recursive -o "$output" --skip-existing "$@"
