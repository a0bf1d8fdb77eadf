"""OpenAI-style messages: what is read, and how each mistake is named."""

import pytest
from PIL import Image

from vitrail.errors import ImageError, InvalidInput
from vitrail.messages import Conversation, Picture, Turn, read_messages

PICTURE = Image.new("RGB", (2, 2))
DATA_URL = "data:image/png;base64,AAAA"
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_is_one_user_message() -> None:
    assert read_messages("Hi") == read_messages([USER]) == Conversation(None, (Turn("user", "Hi"),))


def test_system_turns_and_pictures_are_read_in_order() -> None:
    parts = [
        {"type": "image", "image": PICTURE},
        {"type": "text", "text": "Left?"},
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "auto"}},
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "text", "text": "Right?"},
    ]
    conversation = read_messages([SYSTEM, USER, ASSISTANT, *user(*parts)])
    assert conversation.system == "Be brief."
    assert conversation.turns == (
        Turn("user", "Hi"),
        Turn("assistant", "Hello"),
        Turn("user", "Left?\nRight?", (Picture(PICTURE), Picture(DATA_URL), Picture(DATA_URL))),
    )


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
def test_the_detail_of_an_openai_picture_is_kept(detail: str) -> None:
    part = {"type": "image_url", "image_url": {"url": DATA_URL, "detail": detail}}
    assert read_messages(user(part)).turns[0].images == (Picture(DATA_URL, detail),)  # type: ignore[arg-type]


def test_an_empty_system_message_is_not_a_missing_one() -> None:
    assert read_messages([{"role": "system", "content": ""}, USER]).system == ""


def test_keys_that_are_none_are_ignored_as_openai_clients_send_them() -> None:
    message = {"role": "assistant", "content": "Hello", "tool_calls": None, "refusal": None}
    assert read_messages([USER, message, USER]) == read_messages([USER, ASSISTANT, USER])


MISTAKES = [
    ([], "no user message"),
    ([SYSTEM], "no user message"),
    ([ASSISTANT], r"messages\[0\] has role 'assistant'; the first"),
    ([SYSTEM, ASSISTANT, USER], r"messages\[1\] has role 'assistant'; the first"),
    ([USER, ASSISTANT], r"messages\[1\], the last, has role 'assistant'; end with a user message"),
    ([USER, USER], r"messages\[1\] has role 'user' as the one before it.*join"),
    ([USER, SYSTEM], r"messages\[1\] has role 'system'; only the first"),
    ([SYSTEM, SYSTEM, USER], r"messages\[1\] is a second system message; join it with the first"),
    ([{"role": "tool", "content": "x"}], r"messages\[0\] has role 'tool'; known are system, user, assistant"),
    ([{"role": ["user"], "content": "x"}], r"messages\[0\] has role \['user'\]"),
    ([{"role": "user"}], r"messages\[0\] lacks 'content'"),
    ([{"content": "Hi"}], r"messages\[0\] lacks 'role'"),
    ([USER | {"name": "Ann"}], r"messages\[0\] has the unknown key 'name'; known are role, content"),
    (["Hi"], r"messages\[0\] is of type str"),
    (USER, "messages are of type dict; give a string or a list"),
    (b"Hi", "messages are of type bytes"),
    (None, "messages are of type NoneType"),
    ("", r"messages\[0\] is an empty user message"),
    (user(), r"messages\[0\] is an empty user message"),
    (user({"type": "text", "text": ""}), "empty user message"),
    ([{"role": "user", "content": None}], r"messages\[0\] has content of type NoneType"),
    ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\] has content of type dict"),
    (user("Hi"), r"messages\[0\]\.content\[0\] has type str; known part types are text, image, image_url"),
    (user({"text": "Hi"}), r"content\[0\] has type None"),
    (user({"type": "video", "video": "x"}), r"content\[0\] has type 'video'"),
    (user({"type": ["text"], "text": "x"}), r"content\[0\] has type \['text'\]"),
    (user({"type": "text"}), r"content\[0\] lacks 'text'"),
    (user({"type": "text", "text": 5}), r"content\[0\] has a text of type int"),
    (user({"type": "text", "text": "a\ud800"}), r"content\[0\] has a text that is no valid Unicode"),
    (user({"type": "image", "url": "x"}), r"content\[0\] lacks 'image'"),
    (user({"type": "image", "image": PICTURE, "detail": "low"}), "unknown key 'detail'"),
    (user({"type": "image_url", "image_url": {}}), "lacks 'url'"),
    (
        user({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "fine"}}),
        "has detail 'fine'; give 'low'",
    ),
    (
        user({"type": "image_url", "image_url": {"url": DATA_URL, "detail": ["low"]}}),
        r"has detail \['low'\]; give 'low'",
    ),
    (
        user({"type": "image_url", "image_url": {"url": DATA_URL, "size": "low"}}),
        "unknown key 'size'; known are url, detail",
    ),
    (
        [USER, {"role": "assistant", "content": [{"type": "image", "image": PICTURE}]}, USER],
        r"messages\[1\] has a picture but role 'assistant'",
    ),
    (
        [{"role": "system", "content": [{"type": "image", "image": PICTURE}]}, USER],
        "picture but role 'system'",
    ),
]


@pytest.mark.parametrize(("messages", "fault"), MISTAKES)
def test_mistakes_are_named_by_their_place(messages: object, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        read_messages(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["/etc/passwd", "http://127.0.0.1/cat.png", "", None, 5, "x" * 1000])
def test_an_image_url_is_a_data_url_because_it_may_come_from_afar(url: object) -> None:
    with pytest.raises(ImageError, match=r"image_url is .*give a data: URL") as caught:
        read_messages(user({"type": "image_url", "image_url": {"url": url}}))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300
