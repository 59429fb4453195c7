"""Prefect's UI as an operator uses it: a headless Chromium of the machine, real clicks, pictures.

Playwright drives the browser that the machine has; it downloads none. Pictures go to `build/browser`, and
with `SWITCHGEAR_PICTURES=1` (`make pictures`) those of the operators' page are replaced by them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "build/browser"
README_PICTURES = REPOSITORY / ".github/pictures"
WIDTH, HEIGHT = 1360, 900
PATIENCE_MS = 45_000
_PRESSES = 3
_UNAVAILABLE = 503
_REFUSED = (409, 422)
expect.set_options(timeout=PATIENCE_MS)
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """The machine's Chromium; `$SWITCHGEAR_CHROMIUM` names another."""
    return os.environ.get("SWITCHGEAR_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def missing() -> str | None:
    """Why there is no browser, with the command that provides it; None if there is one."""
    return None if executable() else "chromium is missing: apt-get install chromium"


_ASK_AGAIN = """
const ask = window.fetch, presses = /create_flow_run|set_state|resume/;
window.fetch = async (...given) => {
  const request = new Request(...given);
  for (let left = 9; ; left--) {
    const answer = await ask(request.clone());
    if (answer.status !== 503 || !left || presses.test(request.url)) return answer;
    await new Promise(done => setTimeout(done, 500));
  }
};
"""
"""A server on SQLite that is busy answers 503, and the UI asks once: its page then stays empty until somebody
loads it again. Here what a page reads is asked for again. What is pressed is not: see `submit`, `confirm`."""


@contextmanager
def browser_page(profile: Path, ui: str) -> Iterator[Ui]:
    """A page of a browser with a profile of its own."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=executable(),
            headless=True,
            args=_FLAGS.split(),
            viewport={"width": WIDTH, "height": HEIGHT},
        )
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(_ASK_AGAIN)
        try:
            yield Ui(context.pages[0], ui)
        finally:
            context.close()


@dataclass
class Ui:
    """What an operator does: every method is clicks on a page, as in a browser."""

    page: Page
    url: str

    def open(self, path: str) -> None:
        """Go to a page of the UI, in a window of the usual size."""
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("networkidle")

    def picture(self, name: str, *, whole: bool = False, height: int = HEIGHT) -> Path:
        """Keep what the browser shows; `whole`: in a window that is high enough for all of the page.

        The window stays as it is then: what is clicked next does not move under the mouse.
        """
        if whole:
            height = max(height, int(self.page.evaluate("document.documentElement.scrollHeight")))
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.wait_for_load_state("networkidle")
        self.page.evaluate(
            "document.querySelectorAll('[data-sonner-toast]').forEach(toast => toast.remove())"
        )
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled", caret="hide")
        if os.environ.get("SWITCHGEAR_PICTURES") and (README_PICTURES / path.name).exists():
            shutil.copy(path, README_PICTURES)
        return path

    def open_form(self, deployment: str) -> None:
        """The form that starts a run of a deployment, by the links that lead there."""
        self.open("/v2/deployments")
        links = self.page.locator("a[href*='/deployments/deployment/']")
        links.filter(has_text=re.compile(rf"^{re.escape(deployment)}$")).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        self.wait_for_form()

    def wait_for_form(self) -> None:
        """Wait until a form's fields are there."""
        expect(self.page.locator("fieldset textarea").first).to_be_visible()

    def field(self, title: str) -> Locator:
        """What belongs to a field of a form, by its title."""
        label = self.page.locator("label").filter(
            has_text=re.compile(rf"^{re.escape(title)}( \(Optional\))?$")
        )
        return label.locator("xpath=../../..").locator("> fieldset")

    def fill(self, title: str, text: str, kind: str | None = None) -> None:
        """Type into a field; `kind` is pressed first where the field offers several."""
        field = self.field(title)
        if kind is not None:
            field.get_by_role("tab", name=kind, exact=True).click()
        field.locator("textarea, input").fill(text)

    def value(self, title: str) -> str:
        """What a field holds."""
        return self.field(title).locator("textarea, input").first.input_value()

    def told_of(self, title: str) -> Locator:
        """A field with what the form says of it."""
        return self.field(title).locator("xpath=..")

    def complaint_of(self, title: str) -> str:
        """Why the browser does not send what a field holds; empty when it does."""
        return str(self.field(title).locator("input").first.evaluate("field => field.validationMessage"))

    def choose(self, title: str, option: str) -> None:
        """One of the choices of a field."""
        self.field(title).get_by_role("combobox").or_(self.field(title).get_by_role("button")).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def submit(self) -> str:
        """Press *Submit* and open the run that it makes, from the list that comes up; its id.

        Pressed again, as a person would, while a busy server answers 503: it made no run then.
        """
        for _ in range(_PRESSES):
            with self.page.expect_response(lambda response: "/create_flow_run" in response.url) as made:
                self.page.get_by_role("button", name="Submit").click()
            if made.value.status != _UNAVAILABLE:
                break
        assert made.value.status == 201, made.value.text()
        run_id = str(made.value.json()["id"])
        self.page.locator(f"a[href*='/runs/flow-run/{run_id}']").first.click()
        self.page.wait_for_url(re.compile(f"/runs/flow-run/{run_id}"))
        # The address changes before the page does: until then other runs' states are on the list.
        expect(self.page.get_by_role("tab", name="Job Variables")).to_be_visible()
        return run_id

    def refused(self) -> str:
        """Press *Submit* in a form that has mistakes; why the server refuses it.

        Pressed again while a busy server answers 503.
        """
        for _ in range(_PRESSES):
            with self.page.expect_response(lambda response: "/create_flow_run" in response.url) as made:
                self.page.get_by_role("button", name="Submit").click()
            if made.value.status != _UNAVAILABLE:
                break
        assert made.value.status in _REFUSED, made.value.text()
        return made.value.text()

    @contextmanager
    def beside(self) -> Iterator[Ui]:
        """Another tab of the same browser."""
        page = self.page.context.new_page()
        try:
            yield Ui(page, self.url)
        finally:
            page.close()

    def open_run(self, run_id: str) -> None:
        """The page of a flow run."""
        self.open(f"/v2/runs/flow-run/{run_id}")

    def menu(self, choice: str) -> None:
        """A choice of the ⋮ menu of the page."""
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name=choice, exact=True).click()

    def confirm(self, button: str) -> None:
        """Press a button of the dialog that has opened; again, as a person would, while it stays open.

        A server on SQLite that is busy refuses now and then, and the UI then leaves the dialog as it is.
        """
        dialog = self.page.get_by_role("alertdialog").or_(self.page.get_by_role("dialog"))
        pressed = dialog.get_by_role("button", name=button, exact=True)
        for _ in range(_PRESSES - 1):
            pressed.click()
            try:
                expect(dialog).to_be_hidden(timeout=PATIENCE_MS / 3)
            except AssertionError:
                continue
            return
        pressed.click()
        expect(dialog).to_be_hidden()

    def tab(self, name: str) -> None:
        """A tab of the page."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def open_artifact(self, key: str) -> None:
        """The newest version of an artifact, from the page of its run."""
        self.tab("Artifacts")
        self.page.get_by_role("link", name=key).first.click()
        self.page.locator("a[href*='/artifacts/artifact/']").first.click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))

    def wait_for_state(self, name: str) -> None:
        """Wait until the page of a run shows a state."""
        badge = self.page.get_by_text(name, exact=True).first
        expect(badge).to_be_visible(timeout=4 * PATIENCE_MS)
