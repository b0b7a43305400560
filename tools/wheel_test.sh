#!/usr/bin/env bash
# Builds the sdist, and the wheel from it; installs each in a fresh environment, outside the
# checkout, and makes a picture with what is installed there.
#   tools/wheel_test.sh PYTHON CHECKOUT
set -euo pipefail
python=$1 checkout=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip="python -m pip --disable-pip-version-check --quiet"

"$python" -m venv "$work/build"
"$work/build/bin/"$pip install build
"$work/build/bin/python" -m build --outdir "$work/dist" "$checkout" >"$work/build.log" 2>&1 || {
  tail -40 "$work/build.log" >&2
  exit 1
}
cp "$checkout/examples/content_lake.jpg" "$checkout/examples/style_swirls.jpg" "$work"
cd "$work"
for file in dist/*.tar.gz dist/*.whl; do
  rm -rf env picture.png
  "$python" -m venv env
  env/bin/$pip install "$file[cpu,openvino]"
  env/bin/python - "$work/env" <<'CHECK'
import sys
from importlib.resources import files

import nst_fast

assert nst_fast.__file__.startswith(sys.argv[1]), nst_fast.__file__
assert files("nst_fast").joinpath("py.typed").is_file()
assert files("nst_fast").joinpath("csrc/steps.cu").is_file()
CHECK
  env/bin/nst-fast stylize content_lake.jpg style_swirls.jpg -o picture.png --size 256 --steps 12
  env/bin/python -c 'from PIL import Image; assert Image.open("picture.png").size == (256, 192)'
  echo "$(basename "$file"): installed and used"
done
