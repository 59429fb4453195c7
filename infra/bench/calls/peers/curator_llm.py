"""bespokelabs-curator: an `LLM` subclass over its OpenAI backend.

`python curator_llm.py INPUT OUTPUT BASE_URL IN_FLIGHT`
"""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
from bespokelabs import curator

SYSTEM = "Classify the document. Answer with one word: sports, politics, science or business."


class Classifier(curator.LLM):
    """One prompt per row."""

    def prompt(self, row: dict) -> list[dict]:
        """The messages."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["text"]}]

    def parse(self, row: dict, response: str) -> dict:
        """The row with its answer."""
        return {"id": row["id"], "text": row["text"], "answer": response}


def main(source: str, target: str, base_url: str, in_flight: int) -> None:
    """Read, ask, write."""
    model = Classifier(
        model_name="stub-1",
        backend="openai",
        generation_params={"max_tokens": 32},
        backend_params={
            "base_url": base_url,
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
            "max_concurrent_requests": in_flight,
        },
    )
    answers = model(pq.read_table(source).to_pylist())
    rows = answers.dataset.to_list() if hasattr(answers, "dataset") else answers.to_list()
    pq.write_table(pa.Table.from_pylist(rows), target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
