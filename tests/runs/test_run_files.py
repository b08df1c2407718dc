"""Files that are whole, and for whom the user allows."""

import os
import stat

from sharpflat.runs import files


def test_a_line_cut_short_is_ignored_and_repaired(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_lines(path) == []
    files.append_lines(path, [{"a": 1}, {"a": float("nan")}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"a": 3, "b": [1, 2')
    assert files.read_lines(path) == [{"a": 1}, {"a": None}]
    files.append_lines(path, [{"a": 4}])
    assert path.read_bytes() == whole + b'{"a": 4}\n'


def test_files_are_for_whom_the_user_allows(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "table.csv", "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "table.csv").stat().st_mode) == 0o640
