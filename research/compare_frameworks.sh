#!/bin/bash
# Train CycleGAN, CUT and LSeSim alike on the same slides, translate the same region with each, and tabulate the metrics:
#
#   research/compare_frameworks.sh SOURCE TARGET OUTPUT REGION [options of all three kin train]
#
# REGION (x,y,w,h) of SOURCE is what is translated and measured; keep it out of training by --source-region.
# PATCH (512) is the side of a patch. VGG names VGG16's weights for LSeSim, which otherwise uses random features.
# KIN_INCEPTION names the weights for FID, which is otherwise left out. A small run:
#
#   PATCH=256 research/compare_frameworks.sh he.tif ihc.tif out 0,13312,4096,4096 --source-region 0,0,13346,13000 \
#       --steps 2000 --width 24 --blocks 6 --disc-width 32
#
# Run it again after any interruption and it goes on. The metrics of all are in OUTPUT/table.tsv.
set -euo pipefail
usage='usage: compare_frameworks.sh SOURCE TARGET OUTPUT REGION [options of kin train]'
source=$(realpath "${1:?$usage}") target=$(realpath "${2:?$usage}")
mkdir -p "${3:?$usage}"
cd "$3"
region=${4:?$usage} patch=${PATCH:-512}
shift 4
tile=$((patch < 128 ? 128 : patch))  # side of the tiles that metrics measure; seams are measured at borders of patches

for framework in cyclegan cut lsesim; do
  extra=()
  if [ $framework = lsesim ]; then
    if [ -n "${VGG:-}" ]; then extra=(--vgg "$VGG"); else extra=(--random-features); fi
  fi
  kin train $framework --source "$source" --target "$target" -o $framework --patch-size "$patch" "${extra[@]}" "$@"
  for method in in kin seamless; do
    how=(--method $method)
    [ $method = seamless ] && how=(--seamless)
    name=$framework.$method
    kin translate "$source" -m $framework/generator.safetensors --region "$region" --patch-size "$patch" "${how[@]}" \
      --compression deflate -o $name.ome.tif --skip-existing --overwrite
    kin evaluate $name.ome.tif --reference "$target" --source "$source" --source-region "$region" \
      --tile-size $tile --patch-size "$patch" --csv $name.csv > /dev/null
  done
done

# a row for each framework and method, a column for each metric; the names of the files hold no commas
awk -F, '
  FNR == 1 { row = FILENAME; sub(/\.csv$/, "", row); sub(/\./, " ", row); rows[++n] = row; next }
  { if (!($2 in seen)) { seen[$2] = 1; names[++m] = $2 } value[row, $2] = $3 }
  END {
    printf "framework\tmethod"; for (j = 1; j <= m; j++) printf "\t%s", names[j]; print ""
    for (i = 1; i <= n; i++) {
      split(rows[i], part, " "); printf "%s\t%s", part[1], part[2]
      for (j = 1; j <= m; j++) printf "\t%s", value[rows[i], names[j]] == "" ? "" : sprintf("%.4f", value[rows[i], names[j]])
      print ""
    }
  }' {cyclegan,cut,lsesim}.{in,kin,seamless}.csv > table.tsv
column -t -s "$(printf '\t')" table.tsv
