"""CPU that a worker spends on one request to Cloud Storage: a segment's upload, by the store that runs use.

Against the strict stand-in, which is another process; without TLS. An input of `make simulate-scale`.
"""

from __future__ import annotations

import os
import secrets
import time

from tests.peers.cloud_storage import started

_SEGMENT_BYTES = 200_000  # 128 calls' records: a run of short documents leaves some 2 kB of ledger for each
_REQUESTS = 300


def main() -> None:
    """Upload segments one after the other and print."""
    with started("strict") as place:
        os.environ["STORAGE_EMULATOR_HOST"] = place.url
        from transforms.gcs.store import GcsStore

        store = GcsStore(f"{place.bucket()}/output")
        data = secrets.token_bytes(_SEGMENT_BYTES)
        store.create("first", data)
        began = time.process_time()
        for number in range(_REQUESTS):
            store.create(f"{number:06d}.seg", data)
        cpu_ms = 1000 * (time.process_time() - began) / _REQUESTS
    print(f"{cpu_ms:.2f} ms of CPU for an upload of {_SEGMENT_BYTES:,} bytes ({_REQUESTS} of them)")


if __name__ == "__main__":
    main()
