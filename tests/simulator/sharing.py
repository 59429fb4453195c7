"""What the processes of an output know of each other's answers: hints, and the kernel's locks."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.outcomes import SharedFrom
from tests.simulator.disk import SimulatedDisk
from tests.simulator.frames import whole_frames
from tests.simulator.world import Process
from transforms.call.share import Place, SharedAnswer


@dataclass
class Hints:
    """The index of an output. A power cut takes any of it."""

    disk: SimulatedDisk
    places: dict[bytes, Place] = field(default_factory=dict)
    asking: dict[bytes, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.disk.world.on_power_cut.append(self._lose_power)

    def _lose_power(self) -> None:
        kept = {key: place for key, place in self.places.items() if self.disk.world.source.random() < 0.5}
        self.places.clear()
        self.places.update(kept)


class ProcessHints:
    """The index as one process uses it; the production code's `AnswerIndex`."""

    def __init__(self, hints: Hints, process: Process) -> None:
        self._hints, self._process = hints, process

    def claim(self, key: bytes) -> bool:
        self._process.check()
        holder = self._hints.asking.get(key)
        if holder is not None and holder.alive and holder is not self._process:
            self._process.world.seen.add("asked elsewhere")
            return False
        self._hints.asking[key] = self._process
        return True

    def release(self, key: bytes) -> None:
        self._process.check()
        if self._hints.asking.get(key) is self._process:
            del self._hints.asking[key]

    def find(self, key: bytes) -> SharedAnswer | None:
        self._process.check()
        place = self._hints.places.get(key)
        if place is None:
            return None
        data = bytes(self._hints.disk.inode(place.batch_id).cache[place.offset :])
        frames = whole_frames(data)[:1]
        if int.from_bytes(data[4:8], "little") != place.checksum or not frames:
            return None
        frame = frames[0][0]
        if frame["kind"] != "answered":
            return None
        self._process.world.seen.add("found elsewhere")
        return SharedAnswer.of(SharedFrom(place.batch_id, *frame["of"]), frame, fresh=False)

    def add(self, key: bytes, place: Place) -> None:
        self._process.check()
        inode = self._hints.disk.inode(place.batch_id)
        if inode.synced <= place.offset:
            self._process.world.violate("only durable answers are shared", f"{place} is not durable")
        self._hints.places[key] = place
