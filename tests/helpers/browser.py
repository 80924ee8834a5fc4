"""A headless Chromium for tests of pages; without one they are skipped."""

import json
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--autoplay-policy=no-user-gesture-required",
)

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
)


@contextmanager
def open_browser(profile, width=1280, height=900, phone=False):
    """A driver of a fresh browser whose profile is a folder that does not exist yet.

    `width` and `height` are CSS pixels of the page; a phone has twice as many real ones and a touch screen.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone},
        )
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        yield driver
    finally:
        driver.quit()


def requested(driver):
    """The addresses that the pages since the last call asked for, but those of the browser's own."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    return {address for address in addresses if not address.startswith(("chrome", "data:", "about:"))}
