"""The digest of a folder."""

import subprocess

import pytest

from serve.digest import folder_digest


def test_the_digest_is_what_the_documented_command_prints(tmp_path):
    folder = tmp_path / "folder"
    for name in ("b.json", "B.json", "a.safetensors", "sub/c", "sub.d", "sub-e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 3)
    listed = "find . -type f -printf '%P\\n' | LC_ALL=C sort"
    command = f"{listed} | xargs sha256sum | sha256sum | cut -d' ' -f1"
    printed = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    assert folder_digest(folder) == f"sha256:{printed.stdout.strip()}"


def test_the_digest_changes_with_content_and_with_names(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    seen = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_text(text)
        seen.add(folder_digest(folder))
    assert len(seen) == 3


@pytest.mark.parametrize("target", ["/etc/hostname", "a", "/etc"])
def test_no_digest_of_links_empty_or_missing_folders(tmp_path, target):
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match="There is no folder"):
        folder_digest(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="empty"):
        folder_digest(folder)
    (folder / "a").write_text("a")
    (folder / "link").symlink_to(target)
    with pytest.raises(ValueError, match="symbolic link"):
        folder_digest(folder)
