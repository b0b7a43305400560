"""``nst-fast replay``: a picture made again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nst_fast import images
from nst_fast.cli.console import interruptible, notes
from nst_fast.cli.options import read, with_options
from nst_fast.cli.stylize import end, optimise
from nst_fast.config import EngineOptions
from nst_fast.images import Picture
from nst_fast.output_options import OutputOptions
from nst_fast.recipe import Recipe
from nst_fast.stylizer import Stylizer

EXAMPLES = """Examples:

nst-fast replay stylised.png -o again.png

nst-fast replay stylised.png.json -o print.tif --bits 16"""


@with_options(EngineOptions, OutputOptions)
def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A picture that nst-fast made, or its sidecar.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file of the result.")
    ],
    *,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Take inputs and encoder though they have changed.")
    ] = False,
    progress: Annotated[
        bool,
        typer.Option("--progress/--quiet", help="Show progress and a line at the end, or nothing."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary of the run as JSON.")
    ] = False,
    **options: Any,
) -> None:
    """Make a picture again, from what its file or sidecar says: inputs, settings, engine, versions.

    On the same machine, with the same versions, the file has the same bytes. Relative paths of the
    inputs start at the current folder, or where there is nothing, at that of FILE.
    """
    recipe = Recipe.read(file)
    engine = read(EngineOptions, options, asdict(recipe.engine))
    saving = read(OutputOptions, options, asdict(recipe.output))
    images.check_output(output, [file, *recipe.inputs.paths()])
    images.check_options(output, saving)
    with interruptible(), notes(progress, all_of_them=False):
        stylizer = Stylizer(engine)
        _tell_versions(recipe, stylizer)
        with stylizer.restart(recipe, folder=file.parent, anyway=anyway, read=_read) as run:
            finished = optimise(run, progress, recipe.steps)
            run.stop()
            result = run.result()
        result.save(output, saving)
    end(output, result, finished=finished, progress=progress, as_json=as_json)


def _read(path: str) -> Picture:
    if "://" not in path:
        return images.load(path)
    from nst_fast.batch import storage

    return images.decode(storage.read(path), name=path)


def _tell_versions(recipe: Recipe, stylizer: Stylizer) -> None:
    """What is not as it was, in a line: the picture may then differ a little."""
    before, now = recipe.environment.get("versions"), stylizer.environment["versions"]
    if isinstance(before, dict) and before != now:
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        told = [f"{n} {before.get(n, 'none')}, now {now.get(n, 'none')}" for n in changed]
        typer.echo(f"made with other versions, so it may differ: {'; '.join(told)}", err=True)
