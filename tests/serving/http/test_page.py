"""The page for people: its files, and what a browser makes of them with the real service."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from matplotlib.image import imread
from playwright.sync_api import Browser, FloatRect, Page, Route, expect

from support.browsers import Watched, browser, watched
from support.dicom_series import write_volume
from support.firing_runs import detector, segmentation
from support.listening import Listening, listening
from support.services import QUOTA, in_process
from voxray.core.volume import Grid, Volume
from voxray.readers import read_label_map, read_volume
from voxray.serving.config import database_url
from voxray.serving.http import page as page_routes
from voxray.serving.jobs.store import JobStore
from voxray.serving.jobs.tokens import make_token

FOLDER = Path(page_routes.__file__).parents[1] / "page"
NIIVUE = "niivue-0.69.0.umd.js"
NAMESPACE = "http://www.w3.org/2000/svg"

in_a_browser = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(900)]


# ---- The files


def test_niivue_is_the_release_that_its_licence_names() -> None:
    licence = (FOLDER / "niivue-0.69.0.LICENSE.txt").read_text()
    named = re.search(r"sha256 ([0-9a-f]{64})", licence)
    assert named is not None
    assert hashlib.sha256((FOLDER / NIIVUE).read_bytes()).hexdigest() == named[1]
    assert "BSD 2-Clause License" in licence


def test_the_page_names_no_outside_address_and_only_files_that_are_there() -> None:
    own = [path for path in FOLDER.iterdir() if not path.name.startswith("niivue-")]
    assert own
    for path in own:
        text = path.read_text().replace(NAMESPACE, "")
        assert not re.search(r"https?:|//[a-z]+\.", text), path.name
        named = re.findall(r"/page/([\w.-]+)", text) + re.findall(r'from "\./([\w.]+)"', text)
        assert all((FOLDER / name).is_file() for name in named), (path.name, named)
        assert path.suffix != ".html" or not re.search(r"<script(?![^>]* src=)|<style| on[a-z]+=| style=", text)


def test_pages_and_files_come_compressed_cached_and_confined(tmp_path: Path) -> None:
    async def served() -> None:
        async with in_process(tmp_path) as client:
            page = await client.get("/")
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == "'none'"
            assert "unsafe" not in str(policy)
            assert 'data-signed-in="no"' in page.text

            again = await client.get("/", headers={"if-none-match": page.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            library = await client.get(f"/page/{NIIVUE}")
            assert library.headers["content-encoding"] == "gzip"
            assert int(library.headers["content-length"]) < 900_000
            assert "immutable" in library.headers["cache-control"]
            assert library.content == (FOLDER / NIIVUE).read_bytes()
            plain = await client.head("/page/style.css", headers={"accept-encoding": "identity"})
            assert int(plain.headers["content-length"]) == (FOLDER / "style.css").stat().st_size
            for name in ("nothing.js", "..%2fgate.py", "index.html", "sign_in.html"):
                reply = await client.get(f"/page/{name}")
                assert reply.status_code == 404, name
                assert reply.json()["remedy"]

    asyncio.run(served())


def test_without_a_token_a_browser_is_asked_to_sign_in(tmp_path: Path) -> None:
    async def served() -> None:
        store = JobStore(database_url(tmp_path / "service"))
        token = make_token(store, "reader")
        store.close()
        async with in_process(tmp_path) as client:
            page = await client.get("/")
            assert page.status_code == 401
            assert page.headers["www-authenticate"] == "Bearer"
            assert page.headers["cache-control"] == "no-store"
            assert 'id="sign-in"' in page.text
            assert (await client.get("/page/sign_in.js")).status_code == 200
            assert (await client.get("/v1/jobs")).status_code == 401
            assert (await client.post("/v1/session", json={"token": "wrong"})).status_code == 401
            assert (await client.get("/")).status_code == 401
            assert (await client.post("/v1/session", json={"token": token})).status_code == 204
            page = await client.get("/")
            assert page.status_code == 200
            assert 'data-signed-in="yes"' in page.text
            assert (await client.get("/v1/jobs")).status_code == 200

    (tmp_path / "service").mkdir()
    asyncio.run(served())


# ---- In a browser


@pytest.fixture(scope="module")
def seen() -> Iterator[Browser]:
    """A headless Chromium."""
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Listening]:
    """The real service behind a real socket; its models find something on the scans below."""
    folder = tmp_path_factory.mktemp("page")
    models = {
        "nodules": {"path": str(detector(folder / "nodules", read_volume(chest(shared_data))))},
        "organs": {"path": str(segmentation(folder / "organs", read_volume(abdomen(shared_data))))},
    }
    with listening(folder, models, quota=QUOTA) as served:
        yield served


def chest(shared_data: Path) -> Path:
    """A part of a LUNA16 scan; its data file lies beside it."""
    folder = shared_data / "lidc" / "luna16_style" / "subset0"
    return folder / "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192.mhd"


def series(shared_data: Path) -> list[Path]:
    """16 slices of LIDC-IDRI, as DICOM."""
    return sorted((shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom").glob("*.dcm"))


def abdomen(shared_data: Path) -> Path:
    """A slab of an abdomen."""
    return shared_data / "abdomen" / "TS_example_ct_sm.nii.gz"


@pytest.fixture(scope="module")
def nodules(service: Listening, shared_data: Path) -> str:
    """A job of the detector that is done."""
    return answered(service, "nodules", chest(shared_data), chest(shared_data).with_suffix(".raw"))


@pytest.fixture(scope="module")
def organs(service: Listening, shared_data: Path) -> str:
    """A job of the segmentation that is done."""
    return answered(service, "organs", abdomen(shared_data))


def block(num_slices: int) -> Volume:
    """A bright block in air."""
    voxels = np.full((40, 36, num_slices), -1000, np.int16)
    voxels[10:25, 12:28, 8:20] = 60
    return Volume(voxels, Grid(voxels.shape, (1.5, 1.5, 2.0), (10.0, -20.0, 30.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))


def answered(service: Listening, model: str, *files: Path) -> str:
    """A job, at its end."""
    with httpx.Client(base_url=service.url, timeout=600) as client:
        study = client.post("/v1/studies", files=[("file", (path.name, path.read_bytes())) for path in files]).json()
        job = client.post("/v1/jobs", json={"study_id": study["study_id"], "model": model}).json()["job_id"]
        while (state := client.get(f"/v1/jobs/{job}?wait=60").json()["state"]) in ("queued", "running"):
            pass
        assert state == "done"
        return str(job)


def result(service: Listening, job: str, form: str) -> httpx.Response:
    """A job's answer in a form."""
    return httpx.get(f"{service.url}/v1/jobs/{job}/results/{form}", timeout=60)


def answers_with(service: Listening, status: int) -> None:
    """Waits until the service has looked at its tokens again, and asks for one or no longer does."""
    end = time.monotonic() + 120
    while httpx.get(f"{service.url}/v1/jobs", timeout=60).status_code != status:
        assert time.monotonic() < end
        time.sleep(0.1)


def at_cross(page: Page) -> dict[str, Any]:
    """Where the cross is (LPS mm), and the HU there, as the page tells."""
    text = page.locator("#probe").inner_text()
    found = re.search(r"(-?\d+) HU\s*x (-?[\d.]+)\s+y (-?[\d.]+)\s+z (-?[\d.]+) mm\s*(.*)", text)
    assert found, text
    return {"hu": int(found[1]), "mm": [float(found[k]) for k in (2, 3, 4)], "name": found[5].strip()}


class TestDetection:
    """A chest with findings."""

    pytestmark = in_a_browser

    def test_findings_are_shown_where_they_are_and_walked_through_by_keyboard(
        self, seen: Browser, service: Listening, shared_data: Path
    ) -> None:
        files = [chest(shared_data), chest(shared_data).with_suffix(".raw")]
        with watched(seen, service.url) as look:
            page = look.page
            look.give(*files, model="nodules")
            expect(page.locator("#answer [role=progressbar]")).to_be_visible()
            expect(page.locator("#answer .steps li")).to_have_count(3)
            look.drawn()
            reply = result(service, look.job, "json")
            findings = [finding for finding in reply.json()["findings"] if finding["score"] >= 0.5]
            assert len(findings) > 1
            rows = page.locator(".findings [role=option]")
            expect(rows).to_have_count(len(findings))
            expect(page.locator("#answer-title")).to_have_text(f"{len(findings)} findings")

            # By keyboard alone: Tab reaches the list, the arrows go through it, and the views follow.
            page.locator("#least").focus()
            page.keyboard.press("Tab")
            assert look.js("document.activeElement.getAttribute('role')") == "listbox"
            volume = read_volume(chest(shared_data))
            spacing = np.asarray(volume.grid.spacing_mm)
            for number, finding in enumerate(findings[:3]):
                page.keyboard.press("Home" if number == 0 else "ArrowDown")
                expect(rows.nth(number)).to_have_attribute("aria-selected", "true")
                place = at_cross(page)
                assert np.all(np.abs(np.subtract(place["mm"], finding["center_mm"])) <= spacing / 2 + 0.06)
                voxel = np.floor(volume.grid.to_voxel(np.asarray([place["mm"]]))[0]).astype(int)
                near = volume.voxels[tuple(slice(max(0, k - 1), k + 2) for k in voxel)]
                assert near.min() <= place["hu"] <= near.max()
            look.must_be_clean()

    def test_boxes_lie_on_the_picture_where_niivue_draws_their_corners(
        self, seen: Browser, service: Listening, nodules: str
    ) -> None:
        with watched(seen, service.url, path=f"/#{nodules}") as look:
            look.drawn()
            for layout in ("All", "Axial", "Sagittal"):
                look.page.get_by_role("button", name=layout, exact=True).click()
                look.js("() => new Promise((done) => setTimeout(done, 300))")
                for place in look.js(BOX_ON_SCREEN):
                    # A click there puts niivue's own cross upon the box's rim.
                    box = look.page.locator("#views").bounding_box()
                    assert box is not None
                    look.page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
                    cross = look.js("window.voxray.viewer.facts().cross")
                    assert np.allclose(np.take(cross, place["axes"]), place["at"], atol=0.006), (layout, place, cross)
                assert look.js(INK_HAS_COLOUR)
            look.must_be_clean()

    def test_score_window_zoom_and_layout_answer(self, seen: Browser, service: Listening, nodules: str) -> None:
        reply = result(service, nodules, "json")
        with watched(seen, service.url, path=f"/#{nodules}") as look:
            page = look.page
            look.drawn()
            page.locator("#least").fill("0.05")
            many = len([1 for finding in reply.json()["findings"] if finding["score"] >= 0.05])
            expect(page.locator(".findings [role=option]")).to_have_count(many)
            best = max(finding["score"] for finding in reply.json()["findings"])
            assert best < 1
            page.locator("#least").fill("1")
            expect(page.locator(".findings [role=option]")).to_have_count(0)
            page.get_by_role("button", name="Show the less sure").click()
            expect(page.locator(".findings [role=option]")).to_have_count(len(reply.json()["findings"]))

            page.get_by_role("button", name="Bone").click()
            expect(page.get_by_role("button", name="Bone")).to_have_attribute("aria-pressed", "true")
            page.locator("#views").focus()
            page.keyboard.press("2")
            expect(page.get_by_role("button", name="Axial")).to_have_attribute("aria-pressed", "true")
            slice_before = int(page.locator("#slice").input_value())
            page.keyboard.press("ArrowUp" if slice_before < 16 else "ArrowDown")
            assert abs(int(page.locator("#slice").input_value()) - slice_before) == 1
            page.keyboard.press("n")
            before = look.js("window.voxray.viewer.facts().tiles[0].toScreen([1, 1, 1])[0]")
            page.keyboard.press("+")
            assert look.js("window.voxray.viewer.facts().tiles[0].toScreen([1, 1, 1])[0]") != before
            page.keyboard.press("w")
            expect(page.get_by_role("button", name="Lung")).to_have_attribute("aria-pressed", "true")
            look.must_be_clean()

    def test_every_form_can_be_saved(self, seen: Browser, service: Listening, nodules: str) -> None:
        with watched(seen, service.url, path=f"/#{nodules}") as look:
            look.drawn()
            forms = httpx.get(f"{service.url}/v1/jobs/{nodules}", timeout=120).json()["outputs"]
            links = look.page.locator(".downloads a")
            expect(links).to_have_count(len(forms))
            for number, form in enumerate(forms):
                with look.page.expect_download() as waited:
                    links.nth(number).click()
                assert links.nth(number).get_attribute("data-form") == form
                assert waited.value.suggested_filename.startswith(nodules)
                assert Path(waited.value.path()).stat().st_size > 0

    def test_on_a_phone_nothing_is_wider_than_the_screen(
        self, seen: Browser, service: Listening, nodules: str
    ) -> None:
        with watched(seen, service.url, width=360, height=740) as look:
            assert look.js("document.documentElement.scrollWidth") == 360
            look.page.locator(f"#jobs [data-job='{nodules}'] .job").tap()
            look.drawn()
            assert look.js("document.documentElement.scrollWidth") == 360
            box = look.page.locator("#views").bounding_box()
            assert box is not None
            assert box["width"] == 360
            assert box["y"] < 200
            small = look.js(
                "[...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 30).length"
            )
            assert small == 0
            look.must_be_clean()


class TestSegmentation:
    """An abdomen with masks."""

    pytestmark = in_a_browser

    def test_masks_are_listed_coloured_and_jumped_to(
        self, seen: Browser, service: Listening, shared_data: Path
    ) -> None:
        with watched(seen, service.url) as look:
            page = look.page
            look.give(abdomen(shared_data), model="organs")
            look.drawn()
            reply = result(service, look.job, "json")
            there = [label for label in reply.json()["labels"] if label["num_voxels"]]
            there.sort(key=lambda label: -label["volume_mm3"])
            assert there
            rows = page.locator(".classes li")
            expect(rows).to_have_count(len(there))
            for row, label in zip(rows.all(), there, strict=True):
                amount = float(row.locator(".amount").inner_text().removesuffix(" ml"))
                assert amount == pytest.approx(label["volume_mm3"] / 1000, rel=0.05, abs=0.01)
                row.locator("button").focus()
                page.keyboard.press("Enter")
                assert at_cross(page)["name"].lower() == label["class"].replace("_", " ")

            shown = self.coloured(look)
            page.get_by_role("button", name="Hide all").click()
            hidden = self.coloured(look)
            rows.first.locator("input").focus()
            expect(rows.first.locator("input")).not_to_be_checked()
            page.keyboard.press("Space")
            expect(rows.first.locator("input")).to_be_checked()
            assert hidden == 0 < shown
            page.get_by_role("button", name="Show all").click()
            assert self.coloured(look) == pytest.approx(shown, rel=0.05)
            look.must_be_clean()

    @staticmethod
    def coloured(look: Watched) -> float:
        """How much of the axial view is not grey."""
        look.js("() => new Promise((done) => setTimeout(done, 400))")
        box = look.page.locator("#views").bounding_box()
        assert box is not None
        width, height = box["width"] / 2, box["height"] / 2
        clip: FloatRect = {"x": box["x"], "y": box["y"], "width": width, "height": height}
        look.js("document.querySelector('#ink').style.visibility = 'hidden'")
        picture = imread(io.BytesIO(look.page.screenshot(clip=clip)))[..., :3]
        look.js("document.querySelector('#ink').style.visibility = ''")
        return float((np.ptp(picture, axis=-1) > 0.08).mean())

    def test_the_mask_that_is_shown_is_the_one_that_is_downloaded(
        self, seen: Browser, service: Listening, organs: str, tmp_path: Path
    ) -> None:
        reply = result(service, organs, "nifti")
        (tmp_path / "mask.nii.gz").write_bytes(reply.content)
        mask = read_label_map(tmp_path / "mask.nii.gz")
        with watched(seen, service.url, path=f"/#{organs}") as look:
            look.drawn()
            named = json.loads(result(service, organs, "json").text)["labels"]
            for label in [label for label in named if label["num_voxels"]]:
                x, y, z = look.js("(value) => window.voxray.viewer.placeOf(value)", label["value"])
                voxel = np.floor(mask.grid.to_voxel(np.asarray([[-x, -y, z]]))[0]).astype(int)
                assert mask.voxels[tuple(voxel)] == label["value"]


class TestEarlierScans:
    """Answers that are opened again: on a phone, after their model, and when something fails."""

    pytestmark = in_a_browser

    def test_on_a_phone_the_picture_stays_in_sight(
        self, seen: Browser, service: Listening, nodules: str, organs: str, tmp_path: Path
    ) -> None:
        with watched(seen, service.url, width=390, height=844) as look:
            page = look.page
            for job in (nodules, organs, nodules):
                row = page.locator(f"#jobs [data-job='{job}'] .job")
                row.scroll_into_view_if_needed()
                row.tap()
                look.until(f"location.hash === '#{job}'")
                look.drawn()
                page.wait_for_timeout(1500)  # the list is drawn again while jobs are followed
                views = page.locator("#views").bounding_box()
                assert views is not None
                assert 0 <= views["y"] < 844 - views["height"] + 1, (job, views)
                assert look.js("document.documentElement.scrollWidth") <= 390
                page.screenshot(path=tmp_path / f"phone-{job}.png")
            page.locator(".findings [role=option]").last.tap()
            chosen = page.locator(".findings [role=option]").last.bounding_box()
            assert chosen is not None
            assert 0 <= chosen["y"] < 844  # where it was touched
            look.must_be_clean(but="WebGL")

    def test_an_answer_outlives_its_model(
        self,
        seen: Browser,
        service: Listening,
        nodules: str,
        organs: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        left = {name: card for name, card in service.service.models().items() if name == "organs"}
        monkeypatch.setattr(service.service, "_models", left)
        with watched(seen, service.url, path=f"/#{nodules}") as look:
            look.drawn()
            look.page.screenshot(path=tmp_path / "desktop.png")
            expect(look.page.locator("#answer .warning").first).to_contain_text("no longer served")
            found = len([one for one in result(service, nodules, "json").json()["findings"] if one["score"] >= 0.5])
            expect(look.page.locator(".findings [role=option]")).to_have_count(found)
            expect(look.page.locator(".downloads a")).to_have_count(4)
            expect(look.page.locator("#answer")).not_to_contain_text("Loading")
            look.must_be_clean(but="WebGL")
        with watched(seen, service.url, path=f"/#{organs}") as look:
            look.drawn()
            expect(look.page.locator("#answer .warning")).to_have_count(0)

    @pytest.mark.parametrize("fault", [404, 409, 410, 500, 502, "away", "half"])
    def test_an_answer_that_does_not_come_is_said_and_can_be_asked_for_again(
        self, fault: int | str, seen: Browser, service: Listening, nodules: str
    ) -> None:
        detail = {"detail": "It is not there.", "remedy": "Do this.", "code": "x.y"}

        def answer(route: Route) -> None:
            if fault == "away":
                route.abort("connectionrefused")
            elif fault == "half":
                route.fulfill(status=200, content_type="application/json", body='{"findings": [')
            elif fault == 502:
                route.fulfill(status=502, content_type="text/html", body="<html>Bad gateway</html>")
            else:
                route.fulfill(status=int(fault), content_type="application/problem+json", body=json.dumps(detail))

        said = {"away": "did not answer", "half": "cannot be read", 502: "status 502"}.get(fault, "It is not there.")
        with watched(seen, service.url) as look:
            look.page.route("**/results/json", answer)
            look.page.goto(f"{service.url}/#{nodules}")
            look.page.reload()
            expect(look.page.locator("#answer .problem-detail")).to_contain_text(said)
            expect(look.page.locator("#answer .problem-remedy")).not_to_be_empty()
            expect(look.page.locator("#answer")).not_to_contain_text("Loading")
            look.until("!document.querySelector('#views-note').textContent")
            look.page.unroute("**/results/json")
            look.page.locator("#answer .problem button").click()
            look.drawn()
            expect(look.page.locator("#answer .problem")).to_have_count(0)

    def test_masks_that_do_not_come_cost_the_masks_alone(
        self, seen: Browser, service: Listening, organs: str
    ) -> None:
        with watched(seen, service.url) as look:
            look.page.route("**/results/nifti", lambda route: route.fulfill(status=500, body=""))
            look.page.goto(f"{service.url}/#{organs}")
            look.page.reload()
            expect(look.page.locator("#views-note")).to_contain_text("status 500")
            expect(look.page.locator(".classes li").first).to_be_visible()
            expect(look.page.locator("#answer .problem")).to_have_count(0)

    @pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "older-than-the-list"])
    def test_a_job_that_is_deleted_elsewhere_while_it_waits_is_said_to_be_gone(
        self, is_listed: bool, seen: Browser, service: Listening, shared_data: Path
    ) -> None:
        job = answered(service, "organs", abdomen(shared_data))
        waiting = {"state": "queued", "stage": "queued", "progress": 0.0, "result": None, "place": 0}
        told = {**httpx.get(f"{service.url}/v1/jobs/{job}", timeout=60).json(), **waiting}
        with watched(seen, service.url) as look:
            look.page.route("**/v1/jobs", lambda route: route.fulfill(json={"jobs": [told] if is_listed else []}))
            look.page.route(f"**/v1/jobs/{job}", lambda route: route.fulfill(json=told))
            look.page.goto(f"{service.url}/#{job}")
            expect(look.page.locator("#answer [role=progressbar]")).to_be_visible()
            for _ in range(2):  # the page goes on asking
                with look.page.expect_request("**/v1/jobs"):
                    pass
            httpx.delete(f"{service.url}/v1/jobs/{job}", timeout=60).raise_for_status()
            look.page.unroute("**/v1/jobs")
            look.page.unroute(f"**/v1/jobs/{job}")
            expect(look.page.locator("#give-problem")).to_contain_text("no such job")
            look.must_be_clean(but="404")


class TestEverydayUse:
    """Refusals, reloads, deletion, tokens."""

    pytestmark = in_a_browser

    def test_a_refusal_is_told_with_its_remedy(self, seen: Browser, service: Listening, tmp_path: Path) -> None:
        (tmp_path / "notes.nii.gz").write_text("no scan at all")
        with watched(seen, service.url) as look:
            look.give(tmp_path / "notes.nii.gz", model="organs")
            card = look.page.get_by_role("alert")
            expect(card).to_be_visible()
            with (tmp_path / "notes.nii.gz").open("rb") as file:
                told = httpx.post(f"{service.url}/v1/studies", files={"file": file}, timeout=60).json()
            expect(card.locator(".problem-detail")).to_have_text(told["detail"])
            expect(card.locator(".problem-remedy")).to_have_text(told["remedy"])
            assert told["code"] in card.inner_text()
            look.must_be_clean(but="/v1/studies")

    def test_what_is_dropped_is_sent(self, seen: Browser, service: Listening, shared_data: Path) -> None:
        with watched(seen, service.url) as look:
            look.page.select_option("#model", "organs")
            look.js(DROP, list(abdomen(shared_data).read_bytes()))
            look.drawn()
            look.must_be_clean()

    def test_a_folder_that_is_dropped_is_read_through_and_one_of_its_series_chosen_by_keyboard(
        self, seen: Browser, service: Listening, tmp_path: Path
    ) -> None:
        study = tmp_path / "CD" / "STUDY"
        first = write_volume(study / "A", block(24), SeriesInstanceUID="1.2.3.4.5.6.7.1", SeriesNumber=2)
        second = write_volume(study / "B", block(30), SeriesInstanceUID="1.2.3.4.5.6.7.2", SeriesNumber=7)
        (tmp_path / "CD" / "DICOMDIR").write_bytes(b"no image")
        (study / ".hidden").write_bytes(b"no image")
        with watched(seen, service.url) as look:
            page = look.page
            page.select_option("#model", "organs")
            look.drop(tmp_path / "CD")
            card = page.get_by_role("alert")
            expect(card.locator(".problem-code")).to_contain_text("dicom.several_series")
            choices = card.get_by_role("button")
            expect(choices).to_have_text(["Series 2, 24 images", "Series 7, 30 images"])
            choices.nth(1).focus()
            page.keyboard.press("Enter")
            look.drawn()
            expect(page.get_by_role("alert")).to_have_count(0)
            expect(page.locator(".scan-facts")).to_contain_text("DICOM, 40 \u00d7 36 \u00d7 30 voxels")
            expect(page.locator(".warning")).to_contain_text("left out (24 files)")
            look.must_be_clean(but="/v1/studies")
        assert len(list(first.iterdir())) + len(list(second.iterdir())) == 54

    def test_scans_that_are_opened_one_upon_the_other_are_not_mixed_up(
        self, seen: Browser, service: Listening, nodules: str, organs: str
    ) -> None:
        with watched(seen, service.url) as look:
            page = look.page
            for job in (nodules, organs, nodules, organs, nodules):
                page.locator(f"#jobs [data-job='{job}'] .job").click()
            study = httpx.get(f"{service.url}/v1/jobs/{nodules}", timeout=120).json()["study_id"]
            look.until(f"window.voxray.job?.job_id === '{nodules}' && window.voxray.shown === '{study}'")
            look.drawn()
            assert look.job == nodules
            assert look.js("window.voxray.shown") == study
            shape = httpx.get(f"{service.url}/v1/studies/{study}", timeout=120).json()["shape"]
            assert look.js("window.voxray.viewer.facts().shapes") == [[shape], 1]
            look.must_be_clean()

    def test_a_scan_that_is_deleted_meanwhile_is_said_to_be_gone(
        self, seen: Browser, service: Listening, shared_data: Path
    ) -> None:
        job = answered(service, "organs", abdomen(shared_data))
        study = httpx.get(f"{service.url}/v1/jobs/{job}", timeout=120).json()["study_id"]
        with watched(seen, service.url) as look:
            httpx.delete(f"{service.url}/v1/studies/{study}", timeout=120).raise_for_status()
            look.js("(job) => { location.hash = job; }", job)
            expect(look.page.get_by_role("alert")).to_contain_text("There is no such job.")
            look.must_be_clean(but="404")

    def test_a_reload_finds_earlier_jobs_which_can_be_cancelled_and_deleted(
        self, seen: Browser, service: Listening, shared_data: Path
    ) -> None:
        with watched(seen, service.url) as look:
            page = look.page
            look.give(*series(shared_data), model="nodules")
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator("#answer")).to_contain_text("This job was cancelled.")
            job = look.job
            page.reload()
            expect(page.locator("#answer")).to_contain_text("This job was cancelled.")
            assert httpx.get(f"{service.url}/v1/jobs/{job}", timeout=120).json()["state"] == "cancelled"

            row = page.locator(f"#jobs [data-job='{job}']")
            row.locator(".remove").focus()
            page.keyboard.press("Enter")
            expect(page.get_by_role("dialog")).to_be_visible()
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            expect(row).to_have_count(0)
            assert httpx.get(f"{service.url}/v1/jobs/{job}", timeout=120).status_code == 404
            look.must_be_clean()

    def test_signing_in_and_out(self, seen: Browser, service: Listening) -> None:
        store = service.service.store
        token = make_token(store, "reader")
        try:
            answers_with(service, 401)
            with watched(seen, service.url) as look:
                page = look.page
                expect(page.locator("#token")).to_be_focused()
                page.keyboard.type("wrong")
                page.keyboard.press("Enter")
                expect(page.get_by_role("alert").first).to_contain_text("token")
                page.fill("#token", token)
                page.keyboard.press("Enter")
                expect(page.locator("#drop")).to_be_visible()
                expect(page.locator("#model option")).to_have_count(2)
                assert look.js("document.cookie") == ""
                page.get_by_role("button", name="Sign out").click()
                expect(page.locator("#token")).to_be_visible()
                look.must_be_clean(but="401 (Unauthorized)")
        finally:
            store.remove_token("reader")
            answers_with(service, 200)


BOX_ON_SCREEN = """() => {
  const { boxes, chosen, tiles, cross } = window.voxray.viewer.facts();
  const box = boxes[Math.max(0, chosen)];
  const views = document.querySelector("#views").getBoundingClientRect();
  return tiles.map((tile) => {
    const at = [0, 1, 2].map((k) => (k === tile.depth ? cross[k] : box.low[k] + 0.02 * (box.high[k] - box.low[k])));
    const [x, y] = tile.toScreen(at);
    const axes = [0, 1, 2].filter((k) => k !== tile.depth);
    return { x, y, axes, at: axes.map((k) => at[k]) };
  }).filter(({ x, y }) => x > 2 && y > 2 && x < views.width - 2 && y < views.height - 2).slice(0, 1);
}"""
INK_HAS_COLOUR = """() => {
  const ink = document.querySelector("#ink");
  const copy = new OffscreenCanvas(ink.width, ink.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(ink, 0, 0);
  const { data } = copy.getImageData(0, 0, ink.width, ink.height);
  let found = 0;
  const { boxes, chosen } = window.voxray.viewer.facts();
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(boxes[chosen].colour.slice(k, k + 2), 16));
  for (let k = 0; k < data.length; k += 4) if (data[k] === r && data[k + 1] === g && data[k + 2] === b) found++;
  return found > 50;
}"""
DROP = """(bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "scan.nii.gz"));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
