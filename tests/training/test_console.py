import logging
import os

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.training.console import messages_on_stderr, require_writable, say


def test_a_folder_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match="Cannot write into"):
        require_writable(tmp_path / "file")


def test_no_permission(tmp_path):
    """Root may write anywhere, so the process becomes nobody for a moment."""
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(BadInput, match=r"Permission denied\. Choose an --output_dir you may write to"):
            require_writable(folder / "out")
    finally:
        os.seteuid(user)


def test_messages_are_shown_and_the_logger_is_left_as_it_was(capsys):
    house = logging.getLogger("mpsdiag")
    before = (list(house.handlers), house.propagate)
    with messages_on_stderr():
        logging.getLogger("mpsdiag.training.x").warning("hello")
    assert capsys.readouterr().err == "WARNING: hello\n"
    assert (list(house.handlers), house.propagate) == before


def test_a_folder_whose_letters_the_locale_does_not_have(tmp_path):
    """Under LC_ALL=C an argument comes in as surrogates; the libraries fail on them, hours later."""
    with pytest.raises(BadInput, match=r"/ü': this locale lacks its letters\. Set LC_ALL"):
        require_writable(tmp_path / "\udcc3\udcbc")
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_a_message_steers_the_terminal(capsys):
    with messages_on_stderr():
        logging.getLogger("mpsdiag.training").warning("'%s' is read", "\x1b[31mred\nline")
    say("\x1b]0;title\x07plain")
    assert capsys.readouterr().err == "WARNING: 'red line' is read\nplain\n"
