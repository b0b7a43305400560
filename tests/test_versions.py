"""The version of what is built: from git's tags, and sensible wherever they do not reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", ".gitattributes")
ARCHIVAL = ".git_archival.txt"
ME = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "tag.gpgSign=false")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def alone() -> dict[str, str]:
    """The environment without what would tell a version, or lead to another repository."""
    told = ("GIT_", "SETUPTOOLS_SCM_", "VCS_VERSIONING_")
    return {key: value for key, value in os.environ.items() if not key.startswith(told)}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=alone(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", *ME, *arguments)


def backend(folder: Path, call: str) -> Path:
    """What the build backend writes, as pip and build have it called in the project's folder."""
    out = folder.parent / f"{folder.name}-{call}"
    out.mkdir()
    made = run(
        folder,
        sys.executable,
        "-c",
        f"import sys, scikit_build_core.build as b; print(b.{call}(sys.argv[1]))",
        str(out),
    )
    return out / made.splitlines()[-1]


def version(folder: Path) -> str:
    text = (backend(folder, "prepare_metadata_for_build_wheel") / "METADATA").read_text("utf-8")
    found = re.search(r"^Version: (.*)$", text, re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture
def copy(tmp_path):
    """The files that decide the version, without git."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    # As it is in a checkout: git has filled it in where the tests run in an archive of git's.
    place = "describe-name: $Format:%(describe:tags=true,match=v[0-9]*)$\n"
    if (ROOT / ".git").exists():
        assert (ROOT / ARCHIVAL).read_text("utf-8") == place
    (folder / ARCHIVAL).write_text(place, encoding="utf-8")
    return folder


@pytest.fixture
def checkout(copy):
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "--message", "first")
    return copy


def test_a_tag_is_the_version_and_a_commit_after_it_leads_to_the_next(checkout):
    git(checkout, "tag", "v3.1.4")
    assert version(checkout) == "3.1.4"
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")
    shutil.rmtree(checkout.parent / f"{checkout.name}-prepare_metadata_for_build_wheel")
    node = git(checkout, "rev-parse", "HEAD")[:7]
    assert re.fullmatch(rf"3\.1\.5\.dev1\+g{node}\w*", version(checkout))


def test_a_clone_without_tags_has_a_version(checkout):
    assert re.fullmatch(r"0\.1\.dev1\+g\w+", version(checkout))


def test_an_sdist_keeps_the_version_of_its_checkout(checkout, tmp_path):
    git(checkout, "tag", "v3.1.4")
    with tarfile.open(backend(checkout, "build_sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    assert version(tmp_path / "nst_fast-3.1.4") == "3.1.4"


def test_an_archive_by_git_keeps_the_version_of_its_tag(checkout, tmp_path):
    git(checkout, "tag", "v3.1.4")
    packed = tmp_path / "archive.tar"
    git(checkout, "archive", "--prefix=archive/", f"--output={packed}", "HEAD")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    assert version(tmp_path / "archive") == "3.1.4"


def test_an_archive_of_a_commit_without_tags_has_a_version(checkout, tmp_path):
    packed = tmp_path / "archive.tar"
    git(checkout, "archive", "--prefix=archive/", f"--output={packed}", "HEAD")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    assert version(tmp_path / "archive") == "0.1.dev0"


def test_a_copy_without_git_has_a_version(copy):
    assert version(copy) == "0.1.dev0"


def test_a_folder_within_another_repository_does_not_take_its_version(checkout):
    within = checkout / "within"
    within.mkdir()
    git(checkout, "tag", "v9.9.9")
    for name in FILES:
        shutil.copy(ROOT / name, within)
    assert version(within) == "0.1.dev0"
