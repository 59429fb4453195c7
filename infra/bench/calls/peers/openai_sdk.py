"""What one would write first: the official async SDK with its defaults, so many calls at a time.

`python openai_sdk.py INPUT OUTPUT BASE_URL IN_FLIGHT`
"""

import asyncio
import sys

import pyarrow.parquet as pq
from openai import AsyncOpenAI

SYSTEM = "Classify the document. Answer with one word: sports, politics, science or business."


async def main(source: str, target: str, base_url: str, in_flight: int) -> None:
    """Read, ask, write."""
    table = pq.read_table(source)
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    gate = asyncio.Semaphore(in_flight)

    async def ask(text: str) -> str:
        async with gate:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            reply = await client.chat.completions.create(model="stub-1", messages=messages, max_tokens=32)
            return reply.choices[0].message.content

    answers = await asyncio.gather(*(ask(text) for text in table["text"].to_pylist()))
    pq.write_table(table.append_column("answer", [answers]), target)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
