"""``nst-fast models``: list, build, find and verify encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nst_fast import encoders, runtime
from nst_fast.cli.console import interruptible, print_table
from nst_fast.errors import EncoderError

models = typer.Typer(help="List, build, find and verify encoders.", rich_markup_mode=None)

EncoderName = Annotated[str, typer.Argument(metavar="NAME", help="Of an encoder, or its folder.")]


@models.command("list")
def list_encoders() -> None:
    """List the encoders known by name."""
    table = Table("name", "state", "description", "licence", box=None)
    for entry in encoders.catalogue():
        table.add_row(entry.name, entry.state, entry.description, entry.licence)
    print_table(table)


@models.command("get")
def get_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that can be downloaded.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A file instead of a download.")] = None,
    pooling: Annotated[encoders.Pooling, typer.Option(help="Of the encoder.")] = "max",
) -> None:
    """Build an encoder from published weights and keep it in the cache."""
    known = encoders.CHECKPOINTS.get(name)
    if known is None:
        choices = ", ".join(encoders.CHECKPOINTS)
        raise EncoderError(f"{name!r} is not an encoder to get; choose from {choices}")
    try:
        from nst_fast.export import build_pack
    except ImportError as error:
        raise EncoderError(
            f'building an encoder needs {error.name}; run: pip install "nst-fast[export]"'
        ) from None
    runtime.choose("cpu", "fp32")  # the pack is checked on it: better missed before the download
    with interruptible():
        file, source = checkpoint or _download(name), checkpoint.name if checkpoint else known.url

        def build(folder: Path) -> None:
            build_pack(
                folder,
                file,
                name=name,
                architecture=name,
                pooling=pooling,
                source=source,
                licence=known.licence,
            )

        typer.echo(encoders.install_pack(build, name))


def _download(name: str) -> Path:
    """Fetch a checkpoint, showing how far it is."""
    console = Console(stderr=True)
    columns = TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        return encoders.download_checkpoint(name, progress=show)


@models.command("path")
def encoder_path(name: EncoderName) -> None:
    """Print the folder of an encoder."""
    typer.echo(encoders.load(name).path)


@models.command("verify")
def verify_encoders(
    name: Annotated[str | None, typer.Argument(help="By default every encoder at hand.")] = None,
) -> None:
    """Check every file of an encoder against its hash."""
    at_hand = [entry.name for entry in encoders.catalogue() if entry.state != "available"]
    for each in [name] if name else at_hand:
        files = encoders.verify(each)
        typer.echo(f"{each}: {len(files)} files as they should be")
