"""Another revision's side: its own code or a refusal, and a repository that is only read."""

from __future__ import annotations

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


def contents(repository: Path) -> dict[Path, tuple[int, int]]:
    """What lies in the repository's own folder, and when each file was last written."""
    files = (repository / ".git").rglob("*")
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def test_a_side_is_the_committed_code_in_the_same_folder(repository: Path) -> None:
    (repository / "models/nets.py").write_text("one = 2\n")
    (repository / "models/new.py").write_text("")
    before = contents(repository)
    with side_of("HEAD") as side:
        assert Path(side.root, "nets.py").read_text() == "one = 1\n"
        assert not Path(side.root, "new.py").exists()
        assert Path(side.root).name == "models"
        assert Path(side.home) == repository.resolve()
        assert contents(repository) == before
    assert contents(repository) == before
    assert not Path(side.root).exists()


def test_an_interruption_leaves_nothing(repository: Path) -> None:
    before = contents(repository)
    with pytest.raises(KeyboardInterrupt), side_of("HEAD") as side:
        raise KeyboardInterrupt
    assert contents(repository) == before
    assert not Path(side.root).exists()


def test_files_are_as_git_would_check_them_out(repository: Path) -> None:
    """Neither `export-ignore` nor a sparse checkout of the user's leaves anything out; line ends are set."""
    (repository / ".gitattributes").write_text("*.py export-ignore eol=crlf text\n")
    (repository / "models/run.sh").write_text("exit\n")
    (repository / "models/run.sh").chmod(0o755)
    (repository / "models/link.py").symlink_to("nets.py")
    for arguments in (("add", "-A"), (*AUTHOR, "commit", "-qm", "kinds"), ("sparse-checkout", "set", "none")):
        assert run_git(*arguments, folder=repository).returncode == 0
    with side_of("HEAD", repository) as side:
        inner = Path(side.root, "models")
        assert (inner / "nets.py").read_bytes() == b"one = 1\r\n"
        assert (inner / "link.py").is_symlink()
        assert (inner / "run.sh").stat().st_mode & 0o111


def test_a_hooks_environment_is_not_ours(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a hook git's own variables point at that hook's index, and what we write must not run hooks."""
    hook = repository / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository}/ran\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", "elsewhere")
    with side_of("HEAD") as side:
        assert Path(side.root, "nets.py").exists()
    assert not (repository / "ran").exists()


def test_a_folder_that_the_revision_lacks_is_one_message(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(repository)
    later = repository / "later"
    later.mkdir()
    monkeypatch.chdir(later)
    with pytest.raises(LoadError, match="has no folder later"), side_of("HEAD"):
        pass
    assert contents(repository) == before


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
    before = contents(with_submodule)
    for revision, width in (("HEAD~1", 1), ("HEAD", 2)):
        with side_of(revision) as side:
            assert Path(side.root).parent.joinpath("lib/layers.py").read_text() == f"width = {width}\n"
    assert contents(with_submodule) == before
    assert (inner / "layers.py").read_text() == "width = 2\n"


def test_a_submodule_without_the_commit_says_how_to_get_it(with_submodule: Path) -> None:
    entry = f"160000,{'ab' * 20},lib"
    assert run_git("update-index", "--cacheinfo", entry, folder=with_submodule).returncode == 0
    assert run_git(*AUTHOR, "commit", "-qm", "elsewhere", folder=with_submodule).returncode == 0
    before = contents(with_submodule)
    with pytest.raises(LoadError, match="lib lacks ababababa") as caught, side_of("HEAD"):
        pass
    assert "git -C lib fetch" in caught.value.next
    assert contents(with_submodule) == before
