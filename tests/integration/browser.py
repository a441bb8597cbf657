"""A real browser without a window, where there is one."""

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def open_browser(playwright):
    """Chromium from INRUN_CHROMIUM, the system, or what `playwright install chromium` left."""
    own = playwright.chromium.executable_path
    found = os.environ.get("INRUN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    path = found or (own if Path(own).exists() else None)
    if path is None:
        pytest.skip(
            "no browser: install chromium (apt-get install chromium, or playwright install "
            "chromium), or set INRUN_CHROMIUM to one"
        )
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


class Opened:
    """A page opened in the browser, and whatever it asked for, complained of or popped up."""

    def __init__(self, browser, file, **context):
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.complaints, self.requests, self.alerts = [], [], []
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: (self.alerts.append(d.message), d.dismiss()))
        self.page.goto(file.resolve().as_uri())

    def ready(self):
        self.page.wait_for_selector('#samples[data-ready="yes"]', timeout=120_000)
        return self

    def filtered(self, action):
        """Does something to the filters and waits until the page has followed."""
        before = self.page.inner_text("#status")
        action(self.page)
        self.page.wait_for_function(
            "before => document.getElementById('status').textContent !== before", arg=before
        )
        self.page.evaluate("report.update().then(() => null)")  # charts follow asynchronously
        return self

    def ids(self):
        """The table's ids on this page of it."""
        return self.page.locator("#table tbody button.open").all_inner_texts()

    def chart(self, name):
        """What a chart was given to draw."""
        return self.page.evaluate("name => report.rowsOf(name)", name)

    def downloaded(self, kind):
        """The selection's file of one of the page's formats, such as 'ids' or 'csv'."""
        self.page.select_option("#format", kind)
        with self.page.expect_download() as download:
            self.page.click("#export")
        return Path(download.value.path()).read_text(encoding="utf-8")
