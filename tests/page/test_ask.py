"""Asking on the page: what every member answered beside the fused answer, and texts as they are written."""

import base64
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, expect

from tests.page.answers import BROKEN, DISAGREEMENT, ENDLESS, WRITTEN
from tests.page.chromium import Visit, visit
from tests.page.conftest import LABELS, MARKUP, Server
from tests.serve.images.hostile import picture as drawn
from tests.serve.images.hostile import saved

WORDS = "".join(WRITTEN)


def opened(context: BrowserContext, server: Server, model: str) -> Visit:
    visited = visit(context, server.url)
    visited.page.select_option("#model", model)
    return visited


def predicted(server: Server, text: str) -> dict[str, Any]:
    """Return what the API answers to the same."""
    body = {"model": "intents", "input": text, "return_members": True}
    row: dict[str, Any] = httpx.post(f"{server.url}/v1/predict", json=body).json()["data"][0]
    return row


def marked_up(server: Server) -> str:
    """Return a text to which the answer is the label with markup."""
    texts = (f"text {number}" for number in range(500))
    return next(text for text in texts if predicted(server, text)["label"] == MARKUP)


def test_each_members_answer_stands_beside_the_fused_one(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    texts = ["where is my parcel?", "I want my money back"]
    page.fill("#input", "\n\n".join(texts))
    page.click("#send")
    expect(page.locator(".answer")).to_have_count(2)
    for text, card in zip(texts, page.locator(".answer").all(), strict=True):
        row = predicted(server, text)
        expect(card.locator(".input")).to_have_text(text)
        rows = card.locator(".voices tbody tr").all_inner_texts()
        voices = [("Together", row), *((member["name"], member) for member in row["members"])]
        for said, (name, voice) in zip(rows, voices, strict=True):
            assert said.startswith(name)
            assert voice["label"] in said
            assert f"{voice['probabilities'][voice['label']] * 100:.1f} %" in said
        names = card.locator(".labels li .name").all_inner_texts()
        fused = row["probabilities"]
        assert names == sorted(LABELS, key=lambda label: -fused[label])
        expect(card.locator(".measures")).to_contain_text("Entropy")
        width = card.locator(".voices tr.fused .meter i").evaluate("bar => bar.style.cssText")
        assert width == f"--width: {fused[row['label']] * 100}%;"


def test_only_the_methods_of_the_ensemble_can_be_chosen_and_the_chosen_one_answers(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    options = page.locator("#method option").evaluate_all("all => all.map(each => each.value)")
    assert options == ["average", "weighted_average", "vote"]
    page.select_option("#method", "vote")
    page.fill("#input", "where is my parcel?")
    with page.expect_request("**/v1/predict") as sent:
        page.click("#send")
    assert sent.value.post_data_json["fusion"] == {"method": "vote"}
    expect(page.locator(".voices tr.fused")).to_contain_text("vote")
    page.select_option("#model", "intents/a")
    expect(page.locator("#method-field")).to_be_hidden()


def test_a_label_with_markup_is_a_text(context: BrowserContext, server: Server) -> None:
    visited = opened(context, server, "intents")
    page = visited.page
    text = marked_up(server)
    page.fill("#input", f"{text}\n{MARKUP}")
    page.click("#send")
    expect(page.locator(".answer .said strong").first).to_have_text(MARKUP)
    expect(page.locator(".answer .input").nth(1)).to_have_text(MARKUP)
    assert page.locator("#answers img").count() == 0
    assert page.evaluate("window.broken") is None
    assert visited.complaints == []


def test_the_browser_refuses_markup_even_from_the_page_itself(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name } }"
    )
    assert refused == "TypeError"


def test_what_the_server_refuses_is_told_in_its_own_words(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    page.fill("#input", "\n".join(["x"] * 21))
    page.click("#send")
    expect(page.locator("#ask-error")).to_contain_text("21 inputs are more than the 20")
    page.click("#clear")
    expect(page.locator("#ask-error")).to_be_hidden()
    page.fill("#input", "   ")
    page.click("#send")
    expect(page.locator("#ask-error")).to_have_text("Type at least one input, or choose an image.")


def test_a_text_streams_with_its_tokens_coloured_and_explained(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "replies").page
    page.check("[name=kind][value=completions]")
    page.fill("#input", "Dear customer,")
    page.click("#send")
    tokens = page.locator(".tokens [role=option]")
    expect(tokens).to_have_text(WRITTEN)
    expect(page.locator("#ask-said")).to_contain_text(WORDS)
    levels = [int(each.get_attribute("data-level") or "-1") for each in tokens.all()]
    strongest = max(range(len(WRITTEN)), key=lambda place: DISAGREEMENT[place])
    assert levels[strongest] == max(levels)
    assert len(set(levels)) > 3
    ranks = sorted(range(len(WRITTEN)), key=lambda place: DISAGREEMENT[place])
    assert [levels[place] for place in ranks] == sorted(levels)
    tokens.nth(2).hover()
    expect(page.locator(".detail")).to_contain_text("disagreement 0.31 nats")
    # exp(-0.2 - 0.31): what the script says of member a.
    expect(page.locator(".detail li").nth(1)).to_have_text("a60.0 %")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator(".detail")).to_contain_text("disagreement 0.03 nats")


def test_a_chat_sends_its_history_and_a_new_chat_forgets_it(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "replies").page
    for message in ("one", "two"):
        with page.expect_request("**/v1/chat/completions") as sent:
            page.fill("#input", message)
            page.keyboard.press("Control+Enter")
        expect(page.locator("#ask-said")).to_contain_text(WORDS)
        expect(page.locator("#stop")).to_be_hidden()
    tokens = page.locator(".turn").last.locator(".tokens [role=option]")
    assert all(each.get_attribute("data-level") for each in tokens.all())
    tokens.nth(2).focus()
    expect(page.locator(".turn").last.locator(".detail")).to_contain_text("disagreement 0.31")
    said = [(each["role"], each["content"]) for each in sent.value.post_data_json["messages"]]
    assert said == [("user", "one"), ("assistant", WORDS), ("user", "two")]
    page.click("#clear")
    with page.expect_request("**/v1/chat/completions") as fresh:
        page.fill("#input", "three")
        page.click("#send")
    assert fresh.value.post_data_json["messages"] == [{"role": "user", "content": "three"}]


def test_stop_ends_the_work_in_the_engine(context: BrowserContext, server: Server) -> None:
    page = opened(context, server, "replies").page
    before = server.engines[0].left
    page.fill("#input", ENDLESS)
    page.click("#send")
    expect(page.locator(".tokens [role=option]").nth(3)).to_be_visible()
    page.click("#stop")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".turn > .note")).to_contain_text("stopped")
    expect(page.locator("#ask-error")).to_be_hidden()
    deadline = time.monotonic() + 10
    while server.engines[0].left == before:
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.02)


def test_a_stream_that_breaks_off_is_told_and_what_came_stays(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "replies").page
    page.fill("#input", BROKEN)
    page.click("#send")
    expect(page.locator("#ask-error")).to_contain_text("broke off")
    expect(page.locator(".tokens")).to_have_text(WORDS)
    expect(page.locator(".turn > .note")).to_contain_text("broken off")


def test_a_vote_shows_every_members_whole_answer(context: BrowserContext, server: Server) -> None:
    page = opened(context, server, "replies").page
    page.check("[name=kind][value=completions]")
    page.select_option("#method", "vote")
    page.fill("#input", "where is my parcel?")
    with page.expect_request("**/v1/completions") as sent:
        page.click("#send")
    # What a vote cannot give is not asked for: the server would refuse it.
    assert "logprobs" not in sent.value.post_data_json
    answers = page.locator(".whole blockquote")
    expect(answers).to_have_count(3)
    expect(answers.nth(0)).to_contain_text(f"a agrees{WORDS}")
    expect(answers.nth(2)).to_contain_text("c differsNo.")
    expect(page.locator(".whole")).to_contain_text("Agreement 66.7 %")


def test_pairs_are_asked_where_the_ensemble_reads_them(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    expect(page.locator("#pairs-field")).to_be_hidden()
    page.select_option("#model", "twins")
    page.fill("#input", "A man plays. | Somebody plays.\nalone")
    page.click("#send")
    expect(page.locator("#ask-error")).to_contain_text("this line has one: alone")
    page.fill("#input", "A man plays. | Somebody plays.")
    with page.expect_request("**/v1/predict") as sent:
        page.click("#send")
    pair = {"text": "A man plays.", "text_pair": "Somebody plays."}
    assert sent.value.post_data_json["input"] == [pair]
    expect(page.locator(".answer .input")).to_have_text("A man plays. | Somebody plays.")


KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "value": (
        {
            "value": 2.9,
            "std": 0.12,
            "members": [{"name": "a", "value": 3.1}, {"name": "b", "value": 2.7}],
        },
        ["2.90", "± 0.12 between the members", "a 3.10", "b 2.70"],
    ),
    "several labels": (
        {
            "labels": ["late", "rude"],
            "probabilities": {"late": 0.9, "rude": 0.6, "lost": 0.2},
            "entropy": 1.5,
            "disagreement": 0.2,
            "members": [
                {
                    "name": "a",
                    "labels": [],
                    "probabilities": {"late": 0.4, "rude": 0.3, "lost": 0.1},
                },
                {
                    "name": "b",
                    "labels": ["late", "rude"],
                    "probabilities": {"late": 0.95, "rude": 0.8, "lost": 0.2},
                },
            ],
        },
        ["late, rude", "none of the labels", "differs", "60.0 %", "1.50 of 2.08 nats"],
    ),
    "early exit and abstaining": (
        {
            "label": "late",
            "probabilities": {"late": 0.6, "lost": 0.4},
            "entropy": 0.67,
            "disagreement": 0.0,
            "members_asked": 1,
            "abstained": True,
            "members": [],
        },
        ["late", "asked 1 of 3 members", "abstained: too uncertain"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_is_drawn(context: BrowserContext, server: Server, kind: str) -> None:
    row, said = KINDS[kind]
    usage = {"prompt_tokens": 4, "member_tokens": 12}
    answer = {"model": "intents@1", "data": [{"index": 0, **row}], "usage": usage}
    context.route("**/v1/predict", lambda route: route.fulfill(json=answer))
    page = opened(context, server, "intents").page
    page.fill("#input", "x")
    page.click("#send")
    for words in said:
        expect(page.locator(".answer")).to_contain_text(words)


def test_the_keyboard_alone_can_ask(context: BrowserContext, server: Server) -> None:
    page = visit(context, server.url).page
    expect(page.locator("#send")).to_be_enabled()
    focused = "document.activeElement.id"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "input":
            break
    page.keyboard.type("where is my parcel?")
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "send":
            break
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator("#ask-said")).to_have_text("1 answer by intents@1.")


def test_images_are_shown_before_they_are_sent_and_beside_their_answers(
    context: BrowserContext, server: Server, tmp_path: Path
) -> None:
    page = opened(context, server, "intents").page
    for name in ("one.png", "two.jpg"):
        (tmp_path / name).write_bytes(saved(drawn(), "PNG" if name.endswith("png") else "JPEG"))
    page.set_input_files("#images", [tmp_path / "one.png", tmp_path / "two.jpg"])
    expect(page.locator("#pictures img")).to_have_count(2)
    width = page.locator("#pictures img").first.evaluate(
        "image => image.decode().then(() => image.naturalWidth)"
    )
    assert width == drawn().width
    page.get_by_label("Remove two.jpg").click()
    page.fill("#input", "where is my parcel?")
    with page.expect_request("**/v1/predict") as sent:
        page.click("#send")
    data = base64.b64encode(saved(drawn())).decode()
    asked = ["where is my parcel?", {"image": f"data:image/png;base64,{data}"}]
    assert sent.value.post_data_json["input"] == asked
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator(".answer .input img")).to_have_attribute("alt", "one.png")
    page.click("#clear")
    expect(page.locator("#pictures img")).to_have_count(0)


def test_an_image_and_a_line_are_one_input_where_they_belong_together(
    context: BrowserContext, server: Server, tmp_path: Path
) -> None:
    page = opened(context, server, "intents").page
    (tmp_path / "sofa.png").write_bytes(saved(drawn()))
    page.set_input_files("#images", tmp_path / "sofa.png")
    page.check("#together")
    page.fill("#input", "It came this morning.\nIs it broken?")
    page.click("#send")
    expect(page.locator("#ask-error")).to_have_text(
        "Type one line for each image: there are 2 lines and 1 image."
    )
    page.fill("#input", "It came this morning.")
    with page.expect_request("**/v1/predict") as sent:
        page.click("#send")
    url = f"data:image/png;base64,{base64.b64encode(saved(drawn())).decode()}"
    assert sent.value.post_data_json["input"] == [{"image": url, "text": "It came this morning."}]
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator(".answer .input img")).to_have_attribute("alt", "sofa.png")
    expect(page.locator(".answer .input")).to_contain_text("It came this morning.")


def test_a_dropped_image_is_taken_and_another_file_is_named(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "intents").page
    data = base64.b64encode(saved(drawn())).decode()
    drop = """([name, type, data]) => {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        const moved = new DataTransfer();
        moved.items.add(new File([bytes], name, { type }));
        const options = { dataTransfer: moved, bubbles: true, cancelable: true };
        document.getElementById("input").dispatchEvent(new DragEvent("drop", options));
    }"""
    page.evaluate(drop, ["dropped.png", "image/png", data])
    expect(page.locator("#pictures figcaption")).to_have_text("dropped.png")
    page.evaluate(drop, ["notes.gif", "image/gif", data])
    expect(page.locator("#ask-error")).to_have_text("notes.gif is no PNG, JPEG or WebP.")
    expect(page.locator("#pictures img")).to_have_count(1)
    page.select_option("#model", "replies")
    page.check("[value=completions]")
    expect(page.locator("#images-field")).to_be_hidden()


def test_a_chat_sends_a_pasted_image_before_the_text_and_shows_it(
    context: BrowserContext, server: Server
) -> None:
    page = opened(context, server, "replies").page
    data = base64.b64encode(saved(drawn())).decode()
    paste = """data => {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        const held = new DataTransfer();
        held.items.add(new File([bytes], "sofa.png", { type: "image/png" }));
        const options = { clipboardData: held, bubbles: true, cancelable: true };
        document.getElementById("input").dispatchEvent(new ClipboardEvent("paste", options));
    }"""
    page.evaluate(paste, data)
    expect(page.locator("#pictures figcaption")).to_have_text("sofa.png")
    for message in ("which colour?", "sure?"):
        with page.expect_request("**/v1/chat/completions") as sent:
            page.fill("#input", message)
            page.click("#send")
        expect(page.locator("#ask-said")).to_contain_text(WORDS)
        expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#pictures img")).to_have_count(0)
    expect(page.locator(".turn .input img")).to_have_attribute("alt", "sofa.png")
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    asked = [picture, {"type": "text", "text": "which colour?"}]
    said = [each["content"] for each in sent.value.post_data_json["messages"]]
    assert said == [asked, WORDS, "sure?"]
