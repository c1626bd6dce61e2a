"""A page in headless Chromium: what a script finds there, and every error that the page caused."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

_BEFORE = """<script>
const testErrors = [];
window.addEventListener("error", (event) => testErrors.push(String(event.message)));
for (const kind of ["error", "warn"]) {
  console[kind] = (...texts) => testErrors.push(texts.join(" "));
}
</script>"""
_AFTER = """<pre id="test-found"></pre><script>
(async function () {
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  let value = null;
  try { value = await (async () => { %s })(); } catch (error) { testErrors.push(String(error)); }
  const bytes = new TextEncoder().encode(JSON.stringify({ value, errors: testErrors }));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  document.getElementById("test-found").textContent = btoa(text);
})();
</script>"""


def width_needed(markup: str, width: int, folder: Path) -> int:
    """Return how wide a page is in a window of a width, as phones have it; more is cut off."""
    frame = f'<iframe width="{width}" height="800" srcdoc="{html.escape(str(markup))}"></iframe>'
    script = """
      await wait(3000);
      const inner = document.querySelector("iframe").contentDocument;
      const inside = [...inner.querySelectorAll(".scroll")].map((each) =>
        inner.documentElement.clientWidth + each.scrollWidth - each.clientWidth);
      return Math.max(inner.documentElement.scrollWidth, ...inside);
    """
    return int(played(f'<body style="margin: 0">{frame}', script, folder))


def played(markup: str, script: str, folder: Path) -> Any:
    """Return what a script returns that runs at the end of a page; it may `await wait(ms)`.

    Fails where the page or the script raised or logged an error.
    """
    assert BROWSER is not None
    page = folder / "page.html"
    page.write_text(f"<!doctype html>{_BEFORE}{markup}{_AFTER % script}", encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-sync"]
    command += ["--disable-background-networking", "--no-first-run", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    logged = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    assert not logged, logged
    written = re.search(r'<pre id="test-found">([^<]+)</pre>', done.stdout)
    assert written is not None, "the script did not end"
    found = json.loads(base64.b64decode(written[1]))
    assert found["errors"] == [], found["errors"]
    return found["value"]
