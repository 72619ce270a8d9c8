#!/bin/bash
# Merge the status of all shards of a batch into one table, OUTPUT/kin-batch/status-all.csv, and say what is left to do:
#
#   slurm_merge_status.sh OUTPUT
#
# Exit codes: 0 all slides done; 1 some failed; 75 some shards are not finished (the line to submit them is printed).
set -euo pipefail
exec python3 - "${1:?usage: slurm_merge_status.sh OUTPUT}/kin-batch" <<'PYTHON'
import collections
import csv
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
agreed = folder / "slides.json"
if not agreed.exists():
    sys.exit(f"{agreed}: no such file; was this batch run with --shard?")
shards = json.loads(agreed.read_text())["shards"]
rows, unfinished = [], []
for shard in range(1, shards + 1):
    status = folder / f"status-{shard}-of-{shards}.csv"
    mine = []
    if status.exists():
        with status.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            mine = list(csv.DictReader(file))
    rows += mine
    if not status.exists() or any(row["status"] in ("pending", "running", "stopped") for row in mine):
        unfinished.append(str(shard))
with (folder / "status-all.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
    writer = csv.DictWriter(file, rows[0] if rows else ["slide"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
incomplete = ("failed", "filled", "flawed", "no tissue", "bad generator")
counts = collections.Counter(row["status"] for row in rows)
print(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing yet")
for row in rows:
    if row["status"] in incomplete:
        print(f"{row['status']}: {row['slide']}: {row['reason']}")
if unfinished:
    print(f"shards not finished; unless they still run: sbatch --array={','.join(unfinished)} …")
    sys.exit(75)
sys.exit(1 if any(counts[status] for status in incomplete) else 0)
PYTHON
