"""Whether a file can be written is known before the work that fills it."""

import pytest

from ridgeline.errors import InputError
from ridgeline.outputs import refuse_unwritable


def test_a_new_file_in_a_new_folder_may_be_written_and_is_not_left_behind(tmp_path):
    refuse_unwritable(tmp_path / "new" / "report.html")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    refuse_unwritable(path)
    assert path.read_text() == "before"


def test_a_link_to_nothing_stays_a_link(tmp_path):
    link = tmp_path / "latest.html"
    link.symlink_to(tmp_path / "report.html")
    refuse_unwritable(link)
    assert link.is_symlink()


@pytest.mark.parametrize("unwritable", ["folder", "file/report.html"])
def test_what_cannot_be_written_is_refused_by_its_path(unwritable, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=str(tmp_path / unwritable)):
        refuse_unwritable(tmp_path / unwritable)
