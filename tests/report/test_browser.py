"""The page in a headless browser: it is drawn, can be turned, read by keyboard, and printed."""

import numpy as np
import pytest

from spherescan.cli import main
from spherescan.estimators import SequenceClassifier, SequenceRegressor
from tests.report.test_of_run import finished

pytestmark = pytest.mark.unwatched

# Class names come from data, and data from strangers.
NAMES = ("<img/src=x>", "b&amp;", "c")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run = finished(
        folder,
        local__loss="prototype",
        local__mode="surgery",
        model__n_layers=3,
        run__steps=30,
        optim__lr=0.02,
        data__jitter=0.3,
    )
    path = folder / "page.html"
    data = folder / "train.ts"
    assert main(["report", str(run), str(data), "-o", str(path)]) == 0
    return path


FIGURES = {
    "run": {"confusion", "sphere", "reliability", "open-set", "learning", "validation", "conflict",
            "parts"},
    SequenceClassifier: {"confusion", "sphere", "reliability", "open-set", "learning", "parts"},
    SequenceRegressor: {"numbers", "sphere", "learning", "parts"},
}  # fmt: skip


@pytest.fixture(scope="module", params=FIGURES)
def shown(browser, page, request, tmp_path_factory):
    """Open a page once for all tests of it, and return which figures it is to have."""
    if request.param != "run":
        numbers = np.arange(24) % 3
        noise = np.random.default_rng(0).normal(size=(24, 12))
        series = np.sin(np.outer(numbers + 1, np.linspace(0, 6, 12))) + 0.3 * noise
        quick = {"n_features": 84, "n_networks": 2, "max_steps": 3, "causal": True}
        estimator = request.param(**quick, random_state=0).fit(series, numbers)
        page = estimator.report(tmp_path_factory.mktemp("estimator") / "page.html")
    browser.open(page)
    return FIGURES[request.param]


EYE = "return document.getElementById('sphere-plot')._fullLayout.scene._scene.getCamera().eye"


def test_every_figure_is_drawn_and_nothing_complains(browser, shown):
    assert browser.complaints() == []
    keys = browser.run("return [...document.querySelectorAll('.plot')].map((p) => p.id)")
    assert {key.removesuffix("-plot") for key in keys} == shown
    marks = browser.run(
        """const marks = '.trace path, .heatmaplayer image, .points path, .trace .text';
        return Object.fromEntries([...document.querySelectorAll('.plot:not(.space)')].map(
            (plot) => [plot.id, plot.querySelectorAll(marks).length]))"""
    )
    assert len(marks) == len(shown) - 1
    assert all(marks.values()), marks
    heights = browser.run(
        "return [...document.querySelectorAll('.plot')].map((p) => p.clientHeight)"
    )
    assert min(heights) > 200
    fetched = browser.run("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert [name for name in fetched if not name.startswith(("data:", "blob:"))] == []


@pytest.mark.usefixtures("shown")
def test_the_sphere_is_not_empty(browser):
    colours = browser.run(
        """const image = document.getElementById('sphere-still');
        const copy = document.createElement('canvas');
        copy.width = image.naturalWidth; copy.height = image.naturalHeight;
        const paper = copy.getContext('2d', {willReadFrequently: true});
        paper.drawImage(image, 0, 0);
        const data = paper.getImageData(0, 0, copy.width / 2, copy.height).data;
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) {
            const [red, green, blue, alpha] = data.slice(i, i + 4);
            if (alpha > 200) seen.add([red >> 5, green >> 5, blue >> 5].join());
        }
        return seen.size;"""
    )
    # The left half has no legend in it: points of several classes, prototypes, circles.
    assert colours > 4


@pytest.mark.usefixtures("shown")
def test_the_sphere_turns_when_dragged_and_by_keys(browser):
    from selenium.webdriver import ActionChains, Keys

    plot = browser.driver.find_element("id", "sphere-plot")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", plot)
    eye, picture = browser.run(EYE), browser.picture("sphere")
    ActionChains(browser.driver).move_to_element(plot).click_and_hold().move_by_offset(
        120, 40
    ).move_by_offset(60, 20).release().perform()
    browser.wait(f"const eye = ({EYE.removeprefix('return ')}); return eye.x !== {eye['x']}")
    dragged = browser.run(EYE)
    assert np.linalg.norm([dragged[a] - eye[a] for a in "xyz"]) > 0.1
    assert browser.picture("sphere") != picture
    browser.run("arguments[0].focus()", plot)
    ActionChains(browser.driver).send_keys(Keys.HOME).perform()
    browser.wait(f"return Math.abs(({EYE.removeprefix('return ')}).x - 0.95) < 1e-3")
    ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT, "+").perform()
    browser.wait(f"return ({EYE.removeprefix('return ')}).y < 0.9")
    turned = browser.run(EYE)
    assert np.linalg.norm(list(turned.values())) == pytest.approx(
        np.linalg.norm([0.95, 0.95, 0.55]) / 1.1, rel=1e-3
    )


def test_names_of_strangers_are_text(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    rows = ["case,label,x"]
    for case in range(24):
        name = NAMES[case % 3]
        rows += [f"{case},{name},{(case % 3) + t / 10:.2f}" for t in range(6)]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    from tests.train.test_training import trainer_for

    trainer = trainer_for(folder, data__train=folder / "train.csv", run__steps=4)
    trainer.fit()
    trainer.close()
    path = folder / "page.html"
    assert main(["report", str(folder / "run"), str(folder / "train.csv"), "-o", str(path)]) == 0
    browser.open(path)
    assert browser.complaints() == []
    ticks = browser.run(
        """return [...document.querySelectorAll('#confusion-plot .ytick text')].map(
            (tick) => tick.textContent)"""
    )
    assert sorted(ticks) == sorted(NAMES)
    assert browser.run("return document.querySelectorAll('img[src=\"x\"]').length") == 0


def test_it_follows_light_and_dark(browser, page):
    browser.scheme("light")
    browser.open(page)
    ink = "return document.querySelector('#learning-plot .xtick text').style.fill"
    light = browser.run(ink)
    browser.scheme("dark")
    browser.wait(f"return ({ink.removeprefix('return ')}) !== arguments[0]", light)
    assert (
        browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    )
    assert browser.run(ink) == "rgb(230, 237, 243)"
    browser.scheme("light")


def test_what_is_printed_has_every_figure_and_table(browser, page):
    browser.scheme("dark")
    browser.open(page)
    sizes = browser.run(
        "return [...document.querySelectorAll('.still')].map((image) => image.naturalWidth)"
    )
    assert len(sizes) == 8
    assert min(sizes) >= 700
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert (
        browser.run("return getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert browser.run("return [...document.querySelectorAll('details')].every((d) => d.open)")
    shown = "return [...document.querySelectorAll(arguments[0])].every((e) => e.offsetHeight > 0)"
    assert browser.run(shown, ".still")
    assert not browser.run(shown, ".plot")
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.run("return [...document.querySelectorAll('details')].some((d) => d.open)")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.scheme("light")


def test_everything_is_reached_by_the_tab_key(browser, page):
    from selenium.webdriver import ActionChains, Keys

    browser.open(page)
    wanted = browser.run(
        "return document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length"
    )
    seen = set()
    for _ in range(wanted + 5):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        seen.add(
            browser.run(
                """const now = document.activeElement;
                return [now.tagName, now.id, now.textContent.slice(0, 40)].join(' ')"""
            )
        )
    names = " ".join(seen)
    assert "Skip to the figures" in names
    assert "sphere-plot" in names
    assert "In numbers" in names


def test_without_webgl_the_sphere_is_flat_but_there(flat_browser, page):
    flat_browser.open(page)
    assert (
        flat_browser.run("return document.querySelectorAll('#sphere-plot .points path').length")
        > 20
    )
