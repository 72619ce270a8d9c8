#!/bin/bash
# Translate every slide of a folder on this machine:
#
#   translate_folder.sh SLIDES OUTPUT [options of kin batch]
#
# After an interruption the same command continues. OUTPUT/kin-batch/status.csv holds the outcome of each slide.
# Exit codes: 0 all done; 1 some slides failed; 2 wrong use; 75 and 130 stopped (SIGTERM, Ctrl-C).
set -euo pipefail
if (($# < 2)); then
  echo "usage: translate_folder.sh SLIDES OUTPUT [options of kin batch]" >&2
  exit 2
fi
slides=$1 output=$2
shift 2
# exec: a signal that is sent to this script reaches kin only if kin replaces the script.
exec kin batch "$slides" --recursive -o "$output" --skip-existing "$@"
