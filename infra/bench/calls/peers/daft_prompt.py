"""Daft's `prompt` function over its own OpenAI provider; it decides itself how much is in flight.

`python daft_prompt.py INPUT OUTPUT BASE_URL IN_FLIGHT`

It starts the calls of all rows at once, and the SDK's connection pool walks through all that wait for
each one that comes: 500 rows go through, of 2,000 none is sent within half a minute (Daft 0.7.26, openai
2.38, httpx 0.28). Neither `into_batches`, `default_morsel_size` nor the option `concurrency` changes it;
`daft_func.py` is the way out.
"""

import os
import sys

import daft
from daft import col
from daft.functions import prompt

SYSTEM = "Classify the document. Answer with one word: sports, politics, science or business."


def main(source: str, target: str, base_url: str) -> None:
    """Read, ask, write."""
    daft.set_provider("openai", base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    asked = prompt(
        col("text"),
        system_message=SYSTEM,
        provider="openai",
        model="stub-1",
        use_chat_completions=True,
        max_tokens=32,
    )
    daft.read_parquet(source).with_column("answer", asked).write_parquet(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
