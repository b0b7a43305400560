"""Feed damaged files to what reads files, and see that it reads or refuses them.

    python tools/fuzz.py decode --inputs 50000 --seed 0
    python tools/fuzz.py decode --seed 0 --only 1234      # one of them again, with its traceback

A target is a list of whole files and a function that takes bytes. Whatever it is fed, it has to
return or raise its own kind of error, in time and within memory. Inputs depend on the seed and
their number alone. A process of its own does a few thousand of them, so that a crash is a finding
like any other. Those that fail are saved in --into; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nst_fast import images
from nst_fast.errors import ImageError, NstError
from nst_fast.images import opening, png, tiff

CHUNK = 2000  # inputs of a process
SECONDS = 20  # for one input, on a busy machine
MEMORY = 1 << 30  # bytes above what the process began with
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Target:
    """What is fed.

    Attributes:
        seeds: makes whole files, small ones.
        feed: takes the bytes of one.
        refusal: the only error that it may raise.
    """

    seeds: Callable[[], list[bytes]]
    feed: Callable[[bytes], Any]
    refusal: type[NstError]


# --------------------------------------------------------------------------------------- decode


def pictures() -> list[bytes]:
    """A small picture in every format and mode that is read, with metadata where it has some."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (24, 20, 4), dtype=np.uint8))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[274], exif[271], exif[282] = 6, "camera", 72.0
    from PIL import ImageCms, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>', zip=True)
    text.add_text("Raw profile type exif", "\nexif\n 4\n4d4d", zip=True)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    all_of_it = {"exif": exif, "icc_profile": icc}
    deep = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
    floats = Image.fromarray(rng.random((24, 20), dtype=np.float32))
    two = {"save_all": True, "append_images": [rgb.rotate(90)]}
    made = [
        _file(rgb, "PNG", **all_of_it, pnginfo=text),
        *(_file(image, "PNG") for image in (rgba, grey.convert("LA"), deep, grey.convert("1"))),
        _file(rgb.quantize(8), "PNG", transparency=bytes(range(8))),
        _file(rgb, "PNG", transparency=(1, 2, 3)),
        _file(rgb, "PNG", **two),
        _file(rgb, "JPEG", **all_of_it, comment="long ago"),
        _file(grey, "JPEG", progressive=True),
        _file(rgb.convert("CMYK"), "JPEG"),
        _file(rgb, "MPO", save_all=True, append_images=[rgb]),
        _file(rgba, "WEBP", **all_of_it),
        _file(rgb, "WEBP", lossless=True),
        *(
            _file(rgb, "TIFF", compression=how, **all_of_it)
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        *(_file(image, "TIFF") for image in (rgba, deep, floats, rgb.convert("CMYK"))),
        _file(grey.convert("1"), "TIFF", compression="group4"),
        _file(rgb.quantize(8), "TIFF", **two, big_tiff=True),
        *(_file(image, "BMP") for image in (rgb, rgba, rgb.quantize(8))),
        _file(rgb.quantize(8), "GIF", transparency=3),
        *(_file(image, "PPM") for image in (rgb, grey, deep, floats)),
        _file(rgba, "JPEG2000"),
        _file(grey, "JPEG2000", no_jp2=True),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made += _plugins(rgba, exif)
    for data in made:
        images.decode(data, name="seed")  # or nothing would be tested
    return made


def _plugins(rgba: Image.Image, exif: Image.Exif) -> list[bytes]:
    made = []
    if "AVIF" in images.READABLE:
        made.append(_file(rgba, "AVIF", exif=exif, speed=10))
    if ".heic" in images.readable_endings():
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(rgba).save(file, exif=exif.tobytes())
        made.append(file.getvalue())
    if ".jxl" in images.readable_endings():
        importlib.import_module("pillow_jxl")  # registers its writer
        made += [
            _file(rgba, "JXL", exif=exif.tobytes(), use_container=boxed) for boxed in (False, True)
        ]
    return made


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decode(data: bytes) -> None:
    for bare in (*opening.BARE.values(), tiff.is_raw, tiff.orientation):
        with contextlib.suppress(png.DamagedError):  # all else has to be taken as it comes
            bare(data)
    opening.MAX_PIXELS = 1 << 20  # sizes come before pixels: what is larger must take no memory
    picture = images.decode(data, name="input")
    width, height = picture.size
    assert picture.pixels.shape == (height, width, 3)
    assert np.isfinite(picture.pixels).all()
    assert picture.alpha is None or picture.alpha.shape == (height, width)


TARGETS = {"decode": Target(pictures, decode, ImageError)}


# ------------------------------------------------------------------------------------- damage


def damaged(seeds: list[bytes], seed: int, number: int) -> bytes:
    """The input of that number."""
    rng = random.Random(f"{seed}/{number}")
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Half of all damage to the header, where the structure is.
        end = len(data) if rng.random() < 0.5 else min(len(data), 256)
        at = rng.randrange(max(end, 1))
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                value = rng.choice((*NUMBERS, rng.getrandbits(32))) % (1 << 8 * size)
                data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
            case 4:
                del data[at : at + rng.randrange(1, 64)]
            case 5:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                data[at : at + 32] = other[start : start + 32]
            case 7 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


# ---------------------------------------------------------------------------------------- run


def one(target: Target, data: bytes) -> str | None:
    """What goes wrong with an input, or None."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        target.feed(data)
    except target.refusal as error:
        text = str(error)
        return None if "\n" not in text and ";" in text else f"no line with a remedy: {text!r}"
    except BaseException as error:  # of a library in another language, not always an Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.alarm(0)
    return None


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _work(name: str, seed: int, numbers: range, pipe: Any) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff has much to say
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for number in numbers:
        pipe.send((number, ""))
        found = one(target, damaged(seeds, seed, number))
        if found:
            pipe.send((number, found))
    pipe.send((numbers.stop, ""))


def fuzz(name: str, seed: int, count: int) -> dict[int, str]:
    """What goes wrong, by the number of the input."""
    context = multiprocessing.get_context("spawn")
    found: dict[int, str] = {}
    number = 0
    while number < count:
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(number, min(number + CHUNK, count))
        worker = context.Process(target=_work, args=(name, seed, numbers, theirs))
        worker.start()
        theirs.close()
        last = number
        while True:
            try:
                last, text = ours.recv()
            except EOFError:
                break
            if text:
                found[last] = text
        worker.join()
        if last < numbers.stop:
            found[last] = f"the process ended with {worker.exitcode}"
            last += 1
        number = last
        print(f"\r{number} of {count}, {len(found)} failed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="feed the input of this number alone")
    parser.add_argument("--into", type=Path, default=Path("build/fuzz"), help="for what fails")
    options = parser.parse_args()
    target = TARGETS[options.target]
    seeds = target.seeds()
    if options.only is not None:
        target.feed(damaged(seeds, options.seed, options.only))
        return 0
    began = time.perf_counter()
    found = fuzz(options.target, options.seed, options.inputs)
    for number in itertools.islice(found, 100):
        options.into.mkdir(parents=True, exist_ok=True)
        path = options.into / f"{options.target}-{options.seed}-{number}"
        path.write_bytes(damaged(seeds, options.seed, number))
    for text, times in Counter(found.values()).most_common():
        number = next(number for number in found if found[number] == text)
        print(f"{times:6d} × {text}, such as --only {number}")
    took = time.perf_counter() - began
    print(f"{options.inputs} inputs, seed {options.seed}: {len(found)} failed, {took:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
