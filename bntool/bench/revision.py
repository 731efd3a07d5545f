"""The other side, live: the same reference loaded from a temporary worktree of another git revision."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bntool.bench.protocol import Side
from bntool.errors import LoadError, UsageError


def revision_in(text: str) -> str:
    """`git:origin/main` -> `origin/main`. Raises: UsageError."""
    kind, _, revision = text.partition(":")
    if kind != "git" or not revision or revision.startswith("-"):
        raise UsageError(f"cannot compare against {text!r}", where="--against", next="Write git:origin/main.")
    return revision


def git(*arguments: str, folder: Path) -> str:
    """Raises: LoadError with git's own words."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LoadError("git is not installed", where="--against", next="Install it.") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        advice = "In CI, check out with the whole history (fetch-depth: 0), or fetch that revision first."
        raise LoadError(f"git says: {said}", where=f"git {arguments[0]}", next=advice)
    return done.stdout.strip()


@contextmanager
def side_of(revision: str, folder: Path | None = None) -> Iterator[Side]:
    """The side of `revision`: a worktree of the repository that `folder` is in, gone afterwards.

    Its root is the folder inside that worktree which corresponds to `folder`, so references stay as they are.
    Raises: LoadError.
    """
    here = (folder or Path.cwd()).resolve()
    top = Path(git("rev-parse", "--show-toplevel", folder=here)).resolve()
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}", folder=top)
    with tempfile.TemporaryDirectory(prefix="bntool-revision-") as parent:
        tree = Path(parent, "tree")
        git("worktree", "add", "--detach", "--quiet", str(tree), commit, folder=top)
        try:
            yield Side(root=str(tree / here.relative_to(top)), label=f"{revision} ({commit[:9]})")
        finally:
            git("worktree", "remove", "--force", str(tree), folder=top)


def portable(ref: str, folder: Path | None = None) -> str:
    """A reference relative to `folder`, so that it means the corresponding file on another side."""
    here = f"{(folder or Path.cwd()).resolve()}/"
    return ref.removeprefix(here)


def head(folder: Path | None = None) -> str:
    """The commit that is checked out, with "+" where files have changed, or "" outside a repository."""
    here = (folder or Path.cwd()).resolve()
    try:
        commit = git("rev-parse", "--short=9", "HEAD", folder=here)
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no", folder=here) else "")
    except LoadError:
        return ""
