"""Another revision's side: its own code or a refusal, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bntool.bench.revision import portable, run_git, side_of
from bntool.bench.source import check_origin
from bntool.errors import LoadError, UsageError

AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inner = tmp_path / "repo" / "models"
    inner.mkdir(parents=True)
    (inner / "nets.py").write_text("one = 1\n")
    for arguments in (("init", "-q"), ("add", "-A"), (*AUTHOR, "commit", "-qm", "first")):
        assert run_git(*arguments, folder=inner.parent).returncode == 0
    monkeypatch.chdir(inner)
    return inner.parent


def worktrees(repository: Path) -> int:
    return len(run_git("worktree", "list", folder=repository).stdout.splitlines())


def test_a_side_is_the_committed_code_in_the_same_folder(repository: Path) -> None:
    (repository / "models/nets.py").write_text("one = 2\n")
    (repository / "models/new.py").write_text("")
    with side_of("HEAD") as side:
        assert Path(side.root, "nets.py").read_text() == "one = 1\n"
        assert not Path(side.root, "new.py").exists()
        assert Path(side.root).name == "models"
        assert Path(side.home) == repository.resolve()
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1
    assert not Path(side.root).exists()


def test_an_interruption_leaves_no_worktree(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), side_of("HEAD"):
        raise KeyboardInterrupt
    assert worktrees(repository) == 1
    assert not list((repository / ".git").glob("worktrees/*"))


def test_a_hooks_environment_is_not_ours(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a hook git's own variables point at that hook's index, and a checkout must not run hooks."""
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", "elsewhere")
    with side_of("HEAD") as side:
        assert Path(side.root, "nets.py").exists()


def test_a_folder_that_the_revision_lacks_is_one_message(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = repository / "later"
    later.mkdir()
    monkeypatch.chdir(later)
    with pytest.raises(LoadError, match="has no folder later"), side_of("HEAD"):
        pass
    assert worktrees(repository) == 1


def test_a_reference_means_the_same_file_on_both_sides(repository: Path) -> None:
    inner = repository / "models"
    assert portable("nets.py:net(times=3)") == "nets.py:net(times=3)"
    assert portable(f"{inner}/nets.py:net") == "nets.py:net"
    assert portable(f"{repository}/top.py:net") == "../top.py:net"
    assert portable("pkg.mod:net") == "pkg.mod:net"
    with pytest.raises(UsageError, match="the same in every revision"):
        portable(f"{repository.parent}/elsewhere.py:net")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("tree/pkg.py", ""),
        ("repo/pkg.py", "imported from the working tree"),
        ("site/pkg.py", "no revision changes"),
    ],
)
def test_code_of_the_other_side_is_that_sides_own(
    file: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("pkg_of_a_side")
    module.__file__ = str(tmp_path / file)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ref = f"{module.__name__}:net"
    if reason:
        with pytest.raises(LoadError, match=reason):
            check_origin(ref, tmp_path / "tree", tmp_path / "repo")
    else:
        check_origin(ref, tmp_path / "tree", tmp_path / "repo")


def test_git_is_in_a_session_of_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Ctrl-C in a terminal does not end the command that cleans up."""
    seen: list[object] = []
    real = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: seen.append(k["start_new_session"]) or real(*a, **k)
    )
    run_git("status", folder=repository)
    assert seen == [True]


@pytest.fixture
def with_submodule(repository: Path, tmp_path: Path) -> Path:
    library = tmp_path / "library"
    library.mkdir()
    (library / "layers.py").write_text("width = 1\n")
    for arguments in (("init", "-q"), ("add", "-A"), (*AUTHOR, "commit", "-qm", "first")):
        assert run_git(*arguments, folder=library).returncode == 0
    local = ("-c", "protocol.file.allow=always")
    for arguments in (
        (*local, "submodule", "--quiet", "add", str(library), "lib"),
        (*AUTHOR, "commit", "-qm", "with it"),
    ):
        assert run_git(*arguments, folder=repository).returncode == 0
    return repository


def test_submodules_are_there_at_the_commit_of_the_revision(with_submodule: Path) -> None:
    inner = with_submodule / "lib"
    (inner / "layers.py").write_text("width = 2\n")
    assert run_git(*AUTHOR, "commit", "-qam", "wider", folder=inner).returncode == 0
    assert run_git(*AUTHOR, "commit", "-qam", "the wider one", folder=with_submodule).returncode == 0
    for revision, width in (("HEAD~1", 1), ("HEAD", 2)):
        with side_of(revision) as side:
            assert Path(side.root).parent.joinpath("lib/layers.py").read_text() == f"width = {width}\n"
    assert worktrees(with_submodule) == 1
    assert (inner / "layers.py").read_text() == "width = 2\n"


def test_a_submodule_without_the_commit_says_how_to_get_it(with_submodule: Path) -> None:
    entry = f"160000,{'ab' * 20},lib"
    assert run_git("update-index", "--cacheinfo", entry, folder=with_submodule).returncode == 0
    assert run_git(*AUTHOR, "commit", "-qm", "elsewhere", folder=with_submodule).returncode == 0
    with pytest.raises(LoadError, match="lib lacks ababababa") as caught, side_of("HEAD"):
        pass
    assert "git -C lib fetch" in caught.value.next
    assert worktrees(with_submodule) == 1
