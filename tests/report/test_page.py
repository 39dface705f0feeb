import json
import re
import stat

import pytest

from spherescan.errors import ConfigError
from spherescan.report import Page, Section, Table, html_of, page_path, write_page
from spherescan.report.page import script_json

HOSTILE = "</script><script>alert(1)</script> & <b>bold</b> \"quoted\" 'single'"
SECTION = Section("one", "First", "text", data=({"type": "scatter", "y": [1, 2]},))


def page(sections=(SECTION,), **more):
    return Page(title="T", subtitle="s", headline={}, sections=sections, facts={}, **more)


def test_nothing_of_a_stranger_becomes_markup():
    table = Table((HOSTILE,), ((HOSTILE,),))
    section = Section("one", HOSTILE, HOSTILE, data=({"name": HOSTILE},), table=table)
    text = html_of(
        Page(
            title=HOSTILE,
            subtitle=HOSTILE,
            headline={HOSTILE: HOSTILE},
            sections=[section],
            facts={HOSTILE: {HOSTILE: HOSTILE}},
            commands={HOSTILE: HOSTILE},
            configuration=HOSTILE,
        )
    )
    assert "alert(1)</script>" not in text
    assert "<b>bold" not in text
    found = re.search(
        r'<script id="figures" type="application/json">(.*?)</script>', text, re.DOTALL
    )
    assert json.loads(found[1])["one"]["data"] == [{"name": HOSTILE}]


def test_the_page_names_no_other_file_and_no_network():
    text = html_of(page())
    own = text.replace(re.search(r"<script>/\*\*.*?</script>", text, re.DOTALL)[0], "")
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", own)
    assert "http" not in own.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in own


def test_a_page_without_figures_has_no_library_in_it():
    assert len(html_of(page([Section("one", "First", "none today")]))) < 30_000


def test_json_in_a_script_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"x": float("nan")})


def test_what_cannot_be_a_section_is_refused():
    with pytest.raises(ValueError, match="use lower case"):
        Section("Not so", "", "")
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headings"):
        Table(("a", "b"), (("only",),))


def test_only_a_page_is_written_over(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("precious")
    with pytest.raises(ConfigError, match="another file has this name"):
        write_page(page(), data)
    assert data.read_text() == "precious"
    path = tmp_path / "page.html"
    write_page(page([]), path)
    write_page(page(configuration="second"), path)
    assert "second" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.csv", "page.html"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere/page.html", "folder does not exist"), ("", "is a folder")]
)
def test_a_place_that_is_none_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        page_path(tmp_path / name)


def test_a_lone_surrogate_in_a_name_can_be_written(tmp_path):
    write_page(page([Section("one", "\ud800x", "text")]), tmp_path / "page.html")
    assert "\\ud800x" in (tmp_path / "page.html").read_text()


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install \"spherescan\[report\]\""):
        html_of(page())
