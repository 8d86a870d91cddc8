"""A server in a process of its own: `python serve_process.py OPTIONS`, until its stdin closes.

OPTIONS is a JSON object of the fields of `Options`; `models` is a list of objects, `limits` an object. The
first line on stdout is the origin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vecmill.server.app import create_app
from vecmill.server.options import Limits, ModelSource, Options
from vecmill.server.run import served_in_thread

PATHS = ("repository", "keys_file", "tls_cert", "tls_key")


def options_of(given: dict[str, Any]) -> Options:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    if "models" in given:
        values["models"] = tuple(ModelSource(**model) for model in given["models"])
    if "limits" in given:
        values["limits"] = Limits(**given["limits"])
    for name in PATHS:
        if name in given:
            values[name] = Path(given[name])
    return Options(**values)


def main() -> None:
    app = create_app(options_of(json.loads(sys.argv[1])))
    with served_in_thread(app) as origin:
        print(origin, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
