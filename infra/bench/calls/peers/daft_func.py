"""Daft with an async function of one's own around the official SDK, and a gate in it.

`python daft_func.py INPUT OUTPUT BASE_URL IN_FLIGHT`

What one would write when `prompt` sends nothing (see daft_prompt.py).
"""

import asyncio
import sys

import daft
from daft import col
from openai import AsyncOpenAI

SYSTEM = "Classify the document. Answer with one word: sports, politics, science or business."


def main(source: str, target: str, base_url: str, in_flight: int) -> None:
    """Read, ask, write."""
    kept: list = []  # client and gate belong to the event loop that Daft runs the function on

    @daft.func
    async def ask(text: str) -> str:
        if not kept:
            kept.extend((AsyncOpenAI(base_url=base_url, api_key="none"), asyncio.Semaphore(in_flight)))
        client, gate = kept
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        async with gate:
            reply = await client.chat.completions.create(model="stub-1", messages=messages, max_tokens=32)
        return reply.choices[0].message.content

    daft.read_parquet(source).with_column("answer", ask(col("text"))).write_parquet(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
