# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of a report page: light and dark, wide and narrow.

`make setup` has what it needs: Chromium and its driver.
"""

import base64
import shutil
import sys
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

HERE = Path(__file__).parent
#: Width and height in CSS pixels.
SIZES = {"wide": (1200, 1500), "narrow": (400, 1500)}


def main(page: Path) -> None:
    """Write a PNG for each size and colour scheme beside this file."""
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
