"""What ``import nst_fast`` gives, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import metadata, version

import nst_fast
from nst_fast import _core, errors

PUBLIC = {"NstError", "Report", "Result", "Run", "StyleSettings", "Stylizer", "__version__"}


def test_public_names():
    assert set(nst_fast.__all__) == PUBLIC
    assert len(nst_fast.__all__) == len(PUBLIC)
    for name in PUBLIC:
        assert getattr(nst_fast, name) is not None


def test_public_names_are_documented():
    assert nst_fast.__doc__
    for name in PUBLIC - {"__version__"}:
        public = getattr(nst_fast, name)
        assert public.__doc__, name
        methods = [v for k, v in vars(public).items() if callable(v) and not k.startswith("_")]
        assert all(method.__doc__ for method in methods), name


def test_versions_agree():
    assert nst_fast.__version__ == version("nst-fast") == _core.__version__
    assert metadata("nst-fast")["Requires-Python"] == ">=3.11"


def test_every_error_is_an_nst_error():
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) > 5
    assert all(issubclass(error, nst_fast.NstError) for error in found)


def test_importing_loads_no_runtime():
    """Providers, torch and the command line are loaded when they are used."""
    code = "import json, sys, nst_fast; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    heavy = {"onnxruntime", "openvino", "torch", "onnxscript", "cupy", "skimage", "typer", "rich"}
    assert not heavy & loaded


def test_types_are_shipped():
    from importlib.resources import files

    assert files("nst_fast").joinpath("py.typed").is_file()
