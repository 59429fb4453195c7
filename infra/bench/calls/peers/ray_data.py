"""Ray Data: the HTTP request processor of `ray.data.llm`, its way to call a hosted model.

`python ray_data.py INPUT OUTPUT BASE_URL IN_FLIGHT`

A worker of it sends the requests of a batch one after the other (ray 2.60: what `session.post` gives is
awaited in turn), so that what is in flight is the number of workers, each a process: one per core here.
"""

import sys

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

WORKERS = 4
SYSTEM = "Classify the document. Answer with one word: sports, politics, science or business."


def main(source: str, target: str, base_url: str) -> None:
    """Read, ask, write."""
    ray.init(num_cpus=2 * WORKERS, include_dashboard=False, log_to_driver=False)
    config = HttpRequestProcessorConfig(
        url=f"{base_url}/chat/completions",
        headers={"Authorization": "Bearer none"},
        batch_size=64,
        concurrency=WORKERS,
    )

    def ask(row: dict) -> dict:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["text"]}]
        return {**row, "payload": {"model": "stub-1", "max_tokens": 32, "messages": messages}}

    def answer(row: dict) -> dict:
        text = row["http_response"]["choices"][0]["message"]["content"]
        return {"id": row["id"], "text": row["text"], "answer": text}

    processor = build_processor(config, preprocess=ask, postprocess=answer)
    processor(ray.data.read_parquet(source)).write_parquet(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
