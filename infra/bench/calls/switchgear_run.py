"""This checkout, the way a worker of `switchgear run` works: plan, pipeline, settlement; without Prefect.

`python switchgear_run.py INPUT OUTPUT BASE_URL IN_FLIGHT`
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.drive import drive

WORKLOAD = """
name = "bench"
[input]
uri = "{source}"
id = "id"
text = "text"
[output]
uri = "{target}"
[limits]
max_in_flight = {in_flight}
[backends.stub]
provider = "openai"
model = "stub-1"
base_url = "{base_url}"
requires_key = false
max_output_tokens = 32
max_in_flight = {in_flight}
price = {{ input_per_million = "0.1", output_per_million = "0.4" }}
[prompts.classify]
template = "{{{{ text }}}}"
system = "Classify the document. Answer with one word: sports, politics, science or business."
[[routes]]
name = "classify"
backends = ["stub"]
prompt = "classify"
[budget]
amount = "1000"
"""


def main(source: str, target: str, base_url: str, in_flight: int) -> None:
    """Write the workload and run it."""
    path = Path(target).with_suffix(".toml")
    text = WORKLOAD.format(source=source, target=target, base_url=base_url, in_flight=in_flight)
    path.write_text(text, encoding="utf-8")
    manifest = drive(path)
    if manifest.state != "complete":
        raise SystemExit(f"the run ended {manifest.state}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
