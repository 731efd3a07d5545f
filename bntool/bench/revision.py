"""The other side, live: the same reference loaded from a temporary checkout of another git revision."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bntool.bench.protocol import Side
from bntool.errors import LoadError, UsageError, on_one_line
from bntool.sources.refs import PythonRef, parse

#: `git rev-parse --local-env-vars`, as far as a hook sets them
HOOKS_OWN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
)

#: how a tree of git marks an entry that is a commit of another repository
SUBMODULE = "160000"


def revision_in(text: str) -> str:
    """`git:origin/main` -> `origin/main`. Raises: UsageError."""
    kind, _, revision = text.partition(":")
    if kind != "git" or not revision or revision.startswith("-"):
        raise UsageError(f"cannot compare against {text!r}", where="--against", next="Write git:origin/main.")
    return revision


def git(*arguments: str, folder: Path, index: Path | None = None) -> str:
    """Raises: LoadError with git's own words."""
    done = run_git(*arguments, folder=folder, index=index)
    if done.returncode:
        said = on_one_line(done.stderr)
        advice = "In CI, check out with the whole history (fetch-depth: 0), or fetch that revision first."
        raise LoadError(f"git says: {said}", where=f"git {arguments[0]}", next=advice)
    return done.stdout.strip()


def run_git(*arguments: str, folder: Path, index: Path | None = None) -> subprocess.CompletedProcess[str]:
    """With an index of one's own where the repository's is not to be touched.

    Inside a git hook the environment points git at that hook's index, which is not for us.
    Raises: LoadError without git.
    """
    env = {name: value for name, value in os.environ.items() if name not in HOOKS_OWN}
    if index is not None:
        env["GIT_INDEX_FILE"] = str(index)
    try:
        # a hook that runs whenever an index is written is meant for the user's own
        command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LoadError("git is not installed", where="--against", next="Install it.") from None


@contextmanager
def side_of(revision: str, folder: Path | None = None) -> Iterator[Side]:
    """The side of `revision`: its files in a temporary folder, gone afterwards.

    Its root is the folder in there which corresponds to `folder`, so references stay as they are.
    Raises: LoadError.
    """
    here = (folder or Path.cwd()).resolve()
    top = toplevel(here)
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}", folder=top)
    with tempfile.TemporaryDirectory(prefix="bntool-revision-") as parent:
        tree = Path(parent, "tree").resolve()
        check_out(top, commit, tree)
        root = tree / here.relative_to(top)
        if not root.is_dir():
            what = f"{commit[:9]} has no folder {here.relative_to(top)}"
            raise LoadError(what, where="--against", next="Run it in a folder that exists there.")
        yield Side(root=str(root), home=str(top), label=f"{revision} ({commit[:9]})")


def check_out(repository: Path, commit: str, tree: Path) -> None:
    """Write the files of `commit` to `tree`, submodules from where `repository` has them checked out.

    The repository is only read, which a worktree of git's own would not do: it may be read-only, and
    whatever ends this process leaves nothing in it. Raises: LoadError.
    """
    tree.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bntool-index-") as scratch:
        index = Path(scratch, "index")
        git("read-tree", commit, folder=repository, index=index)
        git(f"--work-tree={tree}", "checkout-index", "--all", folder=repository, index=index)
    for path, at in submodules(repository, commit):
        source = repository / path
        if not (source / ".git").exists():
            continue
        if run_git("cat-file", "-e", f"{at}^{{commit}}", folder=source).returncode:
            advice = f"Fetch it: git -C {path} fetch origin {at}"
            raise LoadError(f"the submodule {path} lacks {at[:9]}", where="--against", next=advice)
        check_out(source, at, tree / path)


def submodules(repository: Path, commit: str) -> Iterator[tuple[str, str]]:
    """(path, commit) of every submodule that `commit` has."""
    for entry in git("ls-tree", "-r", "-z", "--full-tree", commit, folder=repository).split("\0"):
        about, _, path = entry.partition("\t")
        if about.startswith(f"{SUBMODULE} "):
            yield path, about.rsplit(" ", 1)[1]


def toplevel(folder: Path) -> Path:
    """Raises: LoadError outside a repository."""
    return Path(git("rev-parse", "--show-toplevel", folder=folder)).resolve()


def portable(ref: str, folder: Path | None = None) -> str:
    """A reference relative to `folder`, so that it means the corresponding file on another side.

    Raises: UsageError for a file outside the repository, which is the same in every revision.
    """
    named = parse(ref)
    place = Path(named.place if isinstance(named, PythonRef) else named.path)
    if isinstance(named, PythonRef) and not named.is_file:
        return ref
    here = (folder or Path.cwd()).resolve()
    file = (here / place).resolve()
    if not file.is_relative_to(toplevel(here)):
        what = f"{file} is outside the repository, so it is the same in every revision"
        raise UsageError(what, where="--against", next="Name a file of the repository.")
    return ref.replace(str(place), os.path.relpath(file, here), 1)


def head(folder: Path | None = None) -> str:
    """The commit that is checked out, with "+" where files have changed, or "" outside a repository."""
    here = (folder or Path.cwd()).resolve()
    try:
        commit = git("rev-parse", "--short=9", "HEAD", folder=here)
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no", folder=here) else "")
    except LoadError:
        return ""
