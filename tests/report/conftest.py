"""A headless browser, and pages for it to open."""

import shutil
import time

import pytest

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")


class Browser:
    """Opens a page and says what became of it."""

    def __init__(self, *flags):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--window-size=1000,900",
            *flags,
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def scheme(self, name):
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, path):
        self.driver.get(path.as_uri())
        self.wait("return document.documentElement.dataset.drawn === 'yes'")

    def wait(self, script, *arguments, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(script, *arguments):
            assert time.monotonic() < end, f"still not so after {seconds} s: {script}"
            time.sleep(0.05)

    def complaints(self):
        """Return what the console says but for how fast things could be."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if "willReadFrequently" not in entry["message"] and "GPU stall" not in entry["message"]
        ]

    def picture(self, key):
        return self.driver.find_element("id", f"{key}-plot").screenshot_as_png


def started(*flags):
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    return Browser(*flags)


@pytest.fixture(scope="module")
def browser():
    found = started("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def flat_browser():
    """One without WebGL."""
    found = started("--disable-3d-apis")
    yield found
    found.driver.quit()
