"""What ``import nst_fast`` gives, and what it costs."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from importlib.metadata import metadata, version

import nst_fast
from nst_fast import _core, errors


def public() -> dict[str, object]:
    return {name: getattr(nst_fast, name) for name in nst_fast.__all__ if name != "__version__"}


def members(kind: type) -> dict[str, object]:
    """Methods and properties of a public class that users may call."""
    return {
        name: value.fget if isinstance(value, property) else value
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def test_nothing_is_public_by_accident():
    """What ``import nst_fast`` shows without an underscore is listed, or a module."""
    shown = {name for name in vars(nst_fast) if not name.startswith("_")}
    modules = {name for name in shown if inspect.ismodule(getattr(nst_fast, name))}
    assert shown - modules == set(nst_fast.__all__) - {"__version__"} | {"version"}


def test_public_names_are_documented():
    for name, value in public().items():
        if not inspect.isclass(value):  # an alias of types
            continue
        assert value.__doc__, name
        for member, function in members(value).items():
            assert inspect.getdoc(function), f"{name}.{member}"


def test_what_public_signatures_name_is_public():
    """Of the package's own classes: their users have to be able to import them."""
    exported = set(map(id, public().values()))
    missing = set()
    for name, value in public().items():
        if not inspect.isclass(value):
            continue
        made = () if value is nst_fast.Run else (value.__init__,)  # by Stylizer.start
        hints = [typing.get_type_hints(value), *map(typing.get_type_hints, made)]
        hints += [typing.get_type_hints(function) for function in members(value).values()]
        for hint in itertools.chain.from_iterable(found.values() for found in hints):
            ours = (p for p in parts(hint) if getattr(p, "__module__", "").startswith("nst_fast"))
            missing |= {f"{name}: {part.__name__}" for part in ours if id(part) not in exported}
    assert not missing


def test_no_module_is_hidden_by_a_name():
    """``nst_fast.cli.batch`` is the module, not its function."""
    found = pkgutil.walk_packages(nst_fast.__path__, "nst_fast.")
    for name in (module.name for module in found if not module.name.endswith("__main__")):
        package, _, last = name.rpartition(".")
        module = importlib.import_module(name)
        assert getattr(sys.modules[package], last) is module, name


def parts(hint: object) -> Iterator[object]:
    """A type and all that it is made of."""
    yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


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
