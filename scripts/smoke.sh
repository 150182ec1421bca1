#!/usr/bin/env bash
# Does the package work for those who have no clone? PYTHON gets a virtual environment with the wheel and what it asks
# for, nothing else, and every command is run once in an empty folder. Nothing of it is left behind.
#   scripts/smoke.sh PYTHON
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$1" -m venv "$place/venv"
export PATH="$place/venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
unset PYTHONPATH
python -m pip wheel --quiet --no-deps --wheel-dir "$place" "$root"
python -m pip install --quiet "$place"/*.whl
mkdir "$place/work"
cd "$place/work"

run() {
    echo "+ hyperbagel $*"
    hyperbagel "$@"
}

python --version
run --version
for dtype in float32 bfloat16; do
    run generate "a photo of a red circle" --branch scenes/nfe6 --out "$dtype.png" --device.dtype "$dtype"
    run edit "$dtype.png" "Make the circle blue." --steps 4 --out "$dtype-blue.png" --device.dtype "$dtype"
    for draft in "" "--draft=scenes/draft"; do
        run chat "$dtype.png" "What color is the circle?" $draft --device.dtype "$dtype" | tee answer
        grep -qi red answer
    done
done
run fit --config nano/pretrain --config "$root/scripts/smoke.yaml"
run test --config nano/pretrain
grep -rq --include=report.json geneval/overall runs/nano/pretrain
run fit --config nano/draft_head
run test --config nano/draft_head --model.init_args.init_from runs/nano/draft/draft.safetensors
echo "The wheel works on $(python --version)"
