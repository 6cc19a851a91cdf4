"""The page in a real browser (Debian's chromium, headless). `make test-page` runs it; screenshots go to build/page/.

Needs the package chromium; where it is missing these tests fail, they do not skip.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from serving import listening, png

pytestmark = pytest.mark.page

SHOTS = Path(__file__).parents[2] / "build/page"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "no chromium here: `make test-page` installs it with apt-get"
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """open_page(url, **options): a page in a context of its own; at the end no error may stand in its console."""
    contexts, problems = [], []

    def open_in_context(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 820}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith((url, "blob:", "data:")) or problems.append(request.url)
        )
        page.goto(url)
        return page

    yield open_in_context
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def url():
    """A server to look at: SDTURBO_PAGE_URL, or one with the hand-made bundle."""
    return os.environ.get("SDTURBO_PAGE_URL")


@pytest.fixture
def page(open_page, url, server):
    return open_page(url or server)


def picture(page):
    expect(page.locator("#picture")).to_have_attribute("src", re.compile("blob:"), timeout=30000)
    return page.locator("#picture").get_attribute("src")


def next_picture(page, old):
    expect(page.locator("#picture")).not_to_have_attribute("src", old, timeout=30000)
    return page.locator("#picture").get_attribute("src")


def test_typing_draws_and_tells_how_long_it_took(page):
    page.get_by_label("Prompt").press_sequentially("a red cat in the snow", delay=30)
    old = picture(page)
    page.wait_for_timeout(1500)
    expect(page.locator("#latency")).to_have_text(re.compile(r"\d+ ms"))
    drawn = page.locator("#sparkline polyline").get_attribute("points").split()
    assert len(drawn) > 1
    expect(page.locator("#sparkline title")).to_have_text(
        re.compile(rf"The last {len(drawn)} pictures took up to \d+ ms")
    )
    expect(page.locator("#detail")).to_have_text(re.compile(r"engine \d+ ms · seed 0 · 1 step"))
    expect(page.locator("#history li")).to_have_count(1, timeout=30000)
    page.screenshot(path=SHOTS / "typing.png")
    page.get_by_label("Prompt").press_sequentially(" at night", delay=30)
    next_picture(page, old)


def test_seed_steps_and_history(page):
    page.get_by_label("Prompt").fill("a blue boat on the beach")
    first = picture(page)
    expect(page.locator("#history li")).to_have_count(1, timeout=30000)
    page.get_by_role("button", name="Another seed").click()
    second = next_picture(page, first)
    assert page.locator("#seed").input_value() != "0"
    page.locator(".steps span").nth(3).click()
    next_picture(page, second)
    expect(page.locator("#detail")).to_contain_text("4 steps")
    expect(page.locator("#history li")).to_have_count(2, timeout=30000)
    page.screenshot(path=SHOTS / "history.png")
    page.locator("#history button").last.click()
    assert page.locator("#seed").input_value() == "0"
    expect(page.locator("#picture")).to_have_attribute("src", first)


def test_drawing_and_opening_an_image_start_a_frame(page, tmp_path):
    page.get_by_label("Prompt").fill("a green house")
    old = picture(page)
    page.get_by_text("Start from a drawing").click()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 160, steps=5)
    page.mouse.up()
    old = next_picture(page, old)
    page.locator("#strength").fill("1")
    old = next_picture(page, old)
    page.screenshot(path=SHOTS / "drawing.png", full_page=True)
    (tmp_path / "start.png").write_bytes(png(300, 200))
    page.locator("#file").set_input_files(tmp_path / "start.png")
    old = next_picture(page, old)
    (tmp_path / "start.txt").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "start.txt")
    expect(page.get_by_role("alert")).to_contain_text("start.txt is not an image")


def settled(page):
    """The newest picture as pixels, by the download, once nothing changes any more."""
    page.wait_for_timeout(1500)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    with Image.open(download.value.path()) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def paint(page, *points):
    """A stroke over the canvas. points: (x, y), of its width and height."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_only_what_the_mask_brush_painted_changes(page, tmp_path):
    colour = np.array([200, 30, 10])
    (tmp_path / "start.png").write_bytes(png(512, 512, tuple(colour)))
    page.get_by_label("Prompt").fill("a green house")
    picture(page)
    page.get_by_text("Start from a drawing").click()
    page.locator("#file").set_input_files(tmp_path / "start.png")
    page.get_by_text("Mask", exact=True).click()
    expect(page.get_by_role("button", name="Clear mask")).to_be_hidden()
    paint(page, (0.02, 0.02), (0.02, 0.98))
    house = settled(page)
    expect(page.locator("#strength-value")).to_have_text("1.00")
    page.get_by_label("Prompt").fill("a blue boat at night")
    boat = settled(page)
    page.screenshot(path=SHOTS / "mask.png", full_page=True)
    half, edge = house.shape[1] // 2, house.shape[1] // 32
    assert np.abs(house[:, half:] - colour).max() <= 3  # the canvas is sent as a JPEG
    assert np.array_equal(house[:, half:], boat[:, half:])
    assert np.abs(house[:, :edge] - colour).max() > 30
    assert not np.array_equal(house[:, :edge], boat[:, :edge])
    page.get_by_role("button", name="Clear mask").click()
    expect(page.get_by_role("button", name="Clear mask")).to_be_hidden()
    expect(page.locator("#strength-value")).to_have_text("0.50")
    assert not np.array_equal(settled(page)[:, half:], boat[:, half:])


def test_the_mask_brush_goes_on_from_the_shown_picture(page):
    page.get_by_label("Prompt").fill("a green house")
    picture(page)
    before = settled(page)
    page.get_by_text("Start from a drawing").click()
    page.get_by_text("Mask", exact=True).click()
    paint(page, (0.02, 0.02), (0.02, 0.98))
    page.get_by_label("Prompt").fill("a blue boat at night")
    after = settled(page)
    half = before.shape[1] // 2
    kept, lost = np.abs(after - before)[:, half:].mean(), np.abs(after - before)[:, : half // 8].mean()
    assert kept < lost / 2  # the shown picture is a JPEG, and the canvas may be larger
    shown = page.locator("#picture").get_attribute("src")
    page.get_by_role("button", name="Use picture").click()
    expect(page.get_by_role("button", name="Clear mask")).to_be_hidden()
    page.wait_for_timeout(500)
    assert page.locator("#picture").get_attribute("src") == shown


def test_the_chosen_size_is_that_of_picture_canvas_and_mask(open_page, sized):
    with listening(sized) as url:
        page = open_page(url)
        expect(page.locator("#size option")).to_have_text(["64 × 64", "96 × 64"])
        page.get_by_label("Prompt").fill("a green house")
        picture(page)
        assert settled(page).shape == (64, 64, 3)
        page.get_by_text("Start from a drawing").click()
        paint(page, (0.1, 0.5), (0.9, 0.5))
        page.get_by_text("Mask", exact=True).click()
        paint(page, (0.5, 0.4), (0.5, 0.6))
        page.get_by_label("Size").select_option("96x64")
        assert settled(page).shape == (64, 96, 3)
        page.screenshot(path=SHOTS / "size.png", full_page=True)
        for place in ("#picture", "#canvas", "#mask"):
            box = page.locator(place).bounding_box()
            assert box["width"] / box["height"] == pytest.approx(1.5, abs=0.02)
        drawn, painted = (
            [
                page.evaluate(f"[...document.querySelector('{canvas}').getContext('2d').getImageData({at}, 1, 1).data]")
                for at in ("256, 170", "60, 170", "256, 20")
            ]
            for canvas in ("#canvas", "#mask")
        )
        assert drawn == [[208, 52, 44, 255], [208, 52, 44, 255], [255, 255, 255, 255]]
        assert [alpha for *_, alpha in painted] == [255, 0, 0]
        page.locator("#history button").last.click()
        assert page.get_by_label("Size").input_value() == "64x64"
        box = page.locator("#picture").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(1, abs=0.02)


def test_a_bundle_of_one_size_offers_no_choice(page):
    expect(page.locator("#state")).to_have_attribute("data-ok", "yes", timeout=15000)
    expect(page.locator("#size-row")).to_be_hidden()


def test_a_second_prompt_is_blended_in_as_far_as_the_slider_says(page):
    def at(share):
        page.locator("#blend").fill(share)
        expect(page.locator("#blend-value")).to_have_text(f"{float(share):.2f}")
        return settled(page)

    page.get_by_label("Prompt").fill("a blue boat at night")
    boat = settled(page)
    page.get_by_label("Prompt").fill("a green house")
    house = settled(page)
    page.get_by_text("Blend with another prompt").click()
    page.get_by_label("Blend with").fill("a blue boat at night")
    between = settled(page)
    page.screenshot(path=SHOTS / "blend.png")
    assert np.array_equal(at("0"), house)
    assert np.array_equal(at("1"), boat)
    assert np.abs(between - house).max() > 0
    assert np.abs(between - boat).max() > 0
    page.get_by_text("Blend with another prompt").click()
    assert np.array_equal(settled(page), house)
    page.locator("#history button[title*='+']").first.click()
    expect(page.get_by_label("Blend with")).to_be_visible()
    assert page.locator("#blend-value").text_content() == "1.00"
    assert np.array_equal(settled(page), boat)


def test_one_step_becomes_two_with_a_drawing_and_the_page_says_so(page):
    page.get_by_label("Prompt").fill("a green house")
    picture(page)
    expect(page.locator("#hint")).to_be_hidden()
    expect(page.locator("#detail")).to_contain_text("1 step")
    page.get_by_text("Start from a drawing").click()
    paint(page, (0.2, 0.2), (0.8, 0.6))
    expect(page.locator("#detail")).to_contain_text("2 steps", timeout=30000)
    expect(page.locator("#hint")).to_have_text("One step cannot show a drawing, so there are two.")
    expect(page.locator("#hint")).to_be_visible()
    page.locator(".steps span").nth(2).click()
    expect(page.locator("#detail")).to_contain_text("3 steps", timeout=30000)
    expect(page.locator("#hint")).to_be_hidden()
    page.locator(".steps span").nth(0).click()
    expect(page.locator("#hint")).to_be_visible()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.locator(".steps span").nth(0).click()
    expect(page.locator("#detail")).to_contain_text("1 step", timeout=30000)
    expect(page.locator("#hint")).to_be_hidden()


def test_the_download_is_a_png_that_says_how_it_was_made(page, tmp_path):
    page.get_by_label("Prompt").fill("a red cat, 灯台")
    page.locator("#seed").fill("7")
    picture(page)
    expect(page.locator("#detail")).to_contain_text("seed 7", timeout=30000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-red-cat-灯台-7.png"
    download.value.save_as(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.text["parameters"].startswith("a red cat, 灯台\nSteps: 1, ")
        assert "Seed: 7," in image.text["parameters"]


def test_everything_can_be_reached_and_done_with_the_keyboard(page):
    expect(page.get_by_label("Prompt")).to_be_focused()
    page.keyboard.type("a car")
    old = picture(page)
    expect(page.locator("#download")).to_be_visible()
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "SUMMARY":
            page.keyboard.press("Enter")
        if seen[-1] == "canvas":
            page.keyboard.press("Shift+ArrowRight")
            old = next_picture(page, old)
    assert {"second", "blend", "seed", "dice", "lock", "SUMMARY", "canvas", "colour", "brush", "clear"} <= set(seen)
    page.keyboard.press("Alt+r")
    next_picture(page, old)


def test_dark_and_phone_layouts_fit(open_page, url, server):
    dark = open_page(url or server, color_scheme="dark")
    dark.get_by_label("Prompt").fill("a yellow robot in the city")
    picture(dark)
    dark.wait_for_timeout(1000)
    dark.screenshot(path=SHOTS / "dark.png")
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert dark.evaluate(lightness) < 60
    phone = open_page(url or server, viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    assert phone.evaluate(lightness) > 200
    phone.get_by_label("Prompt").fill("a red cat in the snow")
    picture(phone)
    phone.wait_for_timeout(1000)
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for control in ("#prompt", "#dice", "#seed"):
        box = phone.locator(control).bounding_box()
        assert box["height"] >= 40, f"{control} is too small for a finger"
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    phone.screenshot(path=SHOTS / "phone.png")


def test_a_key_is_asked_for_and_used(open_page, bare):
    with listening(bare, api_keys=("correct-horse",)) as url:
        page = open_page(url)
        page.locator("#key").fill("wrong-horse")
        page.get_by_role("button", name="Use").click()
        expect(page.get_by_role("alert")).to_contain_text("Wrong API key")
        page.screenshot(path=SHOTS / "key.png")
        page.locator("#key").fill("correct-horse")
        page.keyboard.press("Enter")
        page.get_by_label("Prompt").fill("a cat")
        picture(page)
        expect(page.locator("#key-row")).to_be_hidden()


def test_after_a_break_the_page_connects_again_and_says_so(page):
    expect(page.locator("#state")).to_have_attribute("data-ok", "yes", timeout=15000)
    model = page.locator("#state").text_content()
    routes = []

    def connect(route):
        routes.append(route)
        route.connect_to_server()

    page.route_web_socket("**/v1/live", connect)
    page.reload()
    page.get_by_label("Prompt").fill("a cat")
    old = picture(page)
    routes[0].close()
    expect(page.locator("#state")).to_contain_text("not connected", timeout=15000)
    expect(page.locator("#state")).to_have_text(model, timeout=15000)
    page.get_by_label("Prompt").fill("a dog")
    next_picture(page, old)
    assert len(routes) == 2


def test_the_page_recovers_when_its_server_was_gone(open_page, bare):
    with listening(bare) as url:
        page = open_page(url)
        page.get_by_label("Prompt").fill("a cat")
        old = picture(page)
    expect(page.locator("#state")).to_contain_text("not connected", timeout=15000)
    assert page.locator("#picture").get_attribute("src") == old
