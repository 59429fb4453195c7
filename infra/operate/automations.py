"""Example automations: tell somebody of what happens to runs, through blocks of the Prefect server.

    PREFECT_API_URL=http://127.0.0.1:4200/api python infra/operate/automations.py \
        --urgent custom-webhook/on-call --daily sendgrid-email/data-team

A block is named TYPE/NAME, as `prefect block ls` shows it, and is made in the UI (Blocks, +): any block that
notifies (Slack, Teams, PagerDuty, e-mail by SendGrid, a custom webhook), or a plain `webhook`. Which events
there are, and when, is in `flows/notice.py`. Applied again, an automation is changed and not doubled.
"""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.deployments import apply_automation

URGENT = ("switchgear.run.incomplete", "switchgear.budget.100", "switchgear.failures.20")
DAILY = (
    "switchgear.run.complete",
    "switchgear.budget.50",
    "switchgear.budget.80",
    "switchgear.failures.1",
    "switchgear.failures.5",
    "switchgear.run.dearer",
    "switchgear.run.slower",
)
SUBJECT = "{{ event.payload.workload }}: {{ event.event }}"
BODY = (
    "{{ event.payload.sentence }}\n"
    "Run {{ event.payload.run_id }}"
    "{% if event.payload.rehearsal %} (a rehearsal: nothing is paid){% endif %}, "
    "output {{ event.payload.output }}\n"
    "{{ event.payload.page }}"
)
"""Templates of Prefect, filled in by its server; the page is that of the flow run."""


def tell(name: str, events: tuple[str, ...], block: tuple[str, UUID]) -> AutomationCore:
    """An automation that tells of events through a block."""
    kind, block_id = block
    return AutomationCore(
        name=f"switchgear: {name}",
        description="Made by infra/operate/automations.py.",
        enabled=True,
        trigger=EventTrigger(
            expect=set(events),
            match={"prefect.resource.id": "switchgear.run.*"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[_action(kind, block_id)],
    )


def _action(kind: str, block_id: UUID) -> Any:
    if kind == "webhook":
        return CallWebhook(block_document_id=block_id, payload=json.dumps({"subject": SUBJECT, "body": BODY}))
    return SendNotification(block_document_id=block_id, subject=SUBJECT, body=BODY)


def find_block(client: SyncPrefectClient, slug: str) -> tuple[str, UUID]:
    """A block's type and id by TYPE/NAME; SystemExit with a sentence if there is none."""
    from prefect.exceptions import ObjectNotFound

    kind, _, name = slug.partition("/")
    try:
        return kind, client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        raise SystemExit(
            f"there is no block {slug!r} on this server: make it in the UI (Blocks, +)"
        ) from None


def main(argv: list[str] | None = None) -> None:
    """Apply the automations whose block is given."""
    parser = argparse.ArgumentParser(description="Tell somebody of what happens to runs.")
    parser.add_argument("--urgent", metavar="TYPE/NAME", help="the block that wakes somebody")
    parser.add_argument("--daily", metavar="TYPE/NAME", help="the block for what is worth knowing")
    given = parser.parse_args(argv)
    with get_client(sync_client=True) as client:
        for name, events, slug in (
            ("a run needs somebody", URGENT, given.urgent),
            ("worth knowing", DAILY, given.daily),
        ):
            if slug:
                apply_automation(client, tell(name, events, find_block(client, slug)))
                print(f"applied: switchgear: {name} -> {slug}")


if __name__ == "__main__":
    main()
