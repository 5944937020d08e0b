# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of a report page: light and dark, wide and narrow.

`make setup` has what it needs: Chromium and its driver.
"""

import base64
import json
import shutil
import sys
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

HERE = Path(__file__).parent
#: Width and height in CSS pixels.
SIZES = {"wide": (1200, 1500), "narrow": (400, 1500)}


def check_is_whole(page: Path) -> None:
    """Exit with a line if the run left out a check: the pictures would show empty columns."""
    # The whole series is checked by everything, a patch in between is not.
    last = json.loads(page.with_name("results.json").read_text())["patches"][-1]
    left_out = [check["name"] for check in last["checks"] if check["status"] == "skipped"]
    if left_out:
        sys.exit(f"{page} has no result of {left_out[0]} for patch {last['number']}; run make test")


def main(page: Path) -> None:
    """Write a PNG for each size and colour scheme beside this file."""
    check_is_whole(page)
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    browser = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        for name, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
                )
                browser.execute_cdp_cmd(
                    "Emulation.setEmulatedMedia",
                    {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
                )
                browser.get(page.resolve().as_uri())
                shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
                picture = base64.b64decode(shot["data"])
                (HERE / f"{name}-{scheme}.png").write_bytes(picture)
    finally:
        browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
