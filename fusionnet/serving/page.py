"""The page /docs: what the service is asked and answers, on one page that loads nothing.

Its one script sends what the form holds; the header names that script by its digest, so that no
other would run, whatever a column is called.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

_TEMPLATE = Path(__file__).with_name("docs.html.j2")


def page_of(schema: dict[str, Any], openapi: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the page, and the headers that forbid it whatever it does not need."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = "{:,.6g}".format
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        schema=schema,
        openapi=openapi,
        example=json.dumps(schema["example"], indent=1, ensure_ascii=False),
    )
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'"
    return html, {
        "Content-Security-Policy": f"default-src 'none'; {allowed}; base-uri 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
