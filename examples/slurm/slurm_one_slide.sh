#!/bin/bash
# Translate one large slide with many tasks on a file system that all nodes see:
#
#   slurm_one_slide.sh TASKS SLIDE OUTPUT [options of kin translate]
#
# Three jobs, each waiting for the one before: all shards of pass 1, all shards of pass 2, the assembly. The output
# equals that of a single process byte for byte (on nodes of one kind). After a failure run it again: finished work is
# kept.
# Options for sbatch go into SBATCH_OPTIONS, such as SBATCH_OPTIONS="--partition=gpu --gres=gpu:1 --mem=16G".
set -euo pipefail
usage="usage: slurm_one_slide.sh TASKS SLIDE OUTPUT [options of kin translate]"
tasks=${1:?$usage} slide=${2:?$usage} output=${3:?$usage}
shift 3
# shellcheck disable=SC2206 # words are meant
options=(--parsable --requeue --open-mode=append --kill-on-invalid-dep=yes ${SBATCH_OPTIONS:-})
job=$(printf '%q ' "$slide" -o "$output" "$@")

# exec in every job: without it signals reach only the shell, and kin cannot end in order.
submit() { sbatch "${options[@]}" "$@"; }
measure=$(submit --job-name=kin-measure --array="1-$tasks" --output=kin-%A_%a.out \
  --wrap "exec kin translate $job --pass measure --shard auto/$tasks")
apply=$(submit --job-name=kin-apply --array="1-$tasks" --output=kin-%A_%a.out --dependency="afterok:$measure" \
  --wrap "exec kin translate $job --pass apply --shard auto/$tasks")
submit --job-name=kin-assemble --output=kin-%j.out --dependency="afterok:$apply" \
  --wrap "exec kin assemble $job --skip-existing"
