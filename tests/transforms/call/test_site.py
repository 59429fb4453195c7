import pytest

from schemas.backends import HostedBackend
from tests.transforms.call.fakes import VirtualClock, run_virtual
from transforms.call.codecs import base_url_of
from transforms.call.lane import Lane
from transforms.call.site import build_sites, place_of
from transforms.price import PriceBook

BIG = HostedBackend(provider="openai", model="gpt-4.1-mini", max_in_flight=100)
SMALL = BIG.model_copy(update={"max_in_flight": 30})


def lanes(processes: int = 1, **backends: HostedBackend) -> dict[str, Lane]:
    places = {name: place_of(name, base_url_of(backend), None) for name, backend in backends.items()}
    sites = build_sites(backends, places, VirtualClock(), PriceBook(), False, processes=processes)
    return {name: site.lane for name, site in sites.items()}


@pytest.mark.parametrize(("processes", "each"), [(1, 100), (3, 33), (200, 1)])
def test_all_processes_together_send_no_more_at_a_time_than_a_backend_may(processes: int, each: int) -> None:
    assert lanes(processes, big=BIG)["big"].limit == each


def test_backends_of_one_model_and_key_share_a_lane_and_its_smallest_limit() -> None:
    found = lanes(2, big=BIG, small=SMALL)
    assert found["big"] is found["small"]
    assert found["big"].limit == 15


@pytest.mark.parametrize(("processes", "waits_s"), [(1, 1.0), (4, 4.0)])
def test_all_processes_together_send_no_more_a_minute_than_the_workload_states(
    processes: int, waits_s: float
) -> None:
    stated = {"big": BIG.model_copy(update={"requests_per_minute": 600})}
    stated["small"] = SMALL.model_copy(update={"requests_per_minute": 60})

    async def second_call() -> list[int]:
        lane = lanes(processes, **stated)["big"]
        found = [await lane.acquire("ask", 1)]
        for within_s in (waits_s - 0.1, waits_s + 0.2):
            found.append(await lane.acquire("ask", 1, within_s=within_s))
        return [permit.serial for permit in found]

    assert run_virtual(second_call()) == [1, 0, 2], "the least of both holds, each process has its part"
