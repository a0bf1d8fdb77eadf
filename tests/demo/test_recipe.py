from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

torch = pytest.importorskip("torch")

from demo.recipe import __main__ as recipe  # noqa: E402
from demo.recipe import curriculum, evaluation, train_joint, train_text, train_vision  # noqa: E402
from demo.recipe.asked import NOT_NAMED, asked  # noqa: E402
from demo.recipe.convert import convert, trained  # noqa: E402
from demo.recipe.curves import draw, read_series  # noqa: E402
from demo.recipe.grow import grow  # noqa: E402
from demo.recipe.loop import LONGEST_STEP_S, resume, run  # noqa: E402
from demo.recipe.model import DemoModel, Shape  # noqa: E402
from demo.recipe.oracle import code_map, tile_codes  # noqa: E402
from demo.recipe.render import fonts, words  # noqa: E402
from demo.recipe.render.charset import CHARACTER_CLASS, CODE_CLASSES  # noqa: E402
from demo.recipe.render.page import Mark, Page, Tag, Type  # noqa: E402
from demo.recipe.render.weather import turn  # noqa: E402
from demo.recipe.resume import resume_from  # noqa: E402
from demo.recipe.scene import Brush  # noqa: E402
from demo.recipe.scenes import MAKERS  # noqa: E402
from demo.recipe.sequence import (  # noqa: E402
    BEFORE,
    KINDS,
    batch,
    encode,
    image_context_id,
    page_names,
    page_tiles,
)
from demo.recipe.spots import IGNORED, ORDER, token_square  # noqa: E402
from demo.recipe.state import normalized, parts_of, save  # noqa: E402
from demo.recipe.tokenizer import CONTRACT, runtime_tokenizer  # noqa: E402

from vitrail.core import PromptOptions  # noqa: E402
from vitrail.prompt import render  # noqa: E402
from vitrail_export.checkpoint import Checkpoint  # noqa: E402
from vitrail_export.reference import Reference  # noqa: E402

pytestmark = pytest.mark.skipif(not fonts.are_installed(), reason=f"needs {fonts.PACKAGES}")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("skill", evaluation.SKILLS)
def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(skill):
    def drawn(seed):
        return [
            (sample.question, sample.answers, [image.tobytes() for image in sample.images])
            for sample in evaluation.samples(skill, 3, seed)
        ]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_a_sample_does_not_depend_on_how_many_are_asked_for():
    few, more = (list(evaluation.samples("receipts", count, 1)) for count in (2, 4))
    assert [each.answers for each in few] == [each.answers for each in more[:2]]


def test_evaluation_shares_no_face_and_no_word_with_training():
    families = ({name.split("/")[0] for name in fonts.faces(which)} for which in ("train", "held_out"))
    assert set.isdisjoint(*families)
    for lists in (words.words, words.goods):
        assert lists("train")
        assert lists("held_out")
        assert set(lists("train")).isdisjoint(lists("held_out"))


@pytest.mark.parametrize("which", ["train", "held_out"])
@pytest.mark.parametrize("skill", MAKERS)
def test_a_brush_prints_in_its_own_faces_only(skill, which, monkeypatch):
    used = set()
    text = Page.text

    def noted(page, x, baseline, words, style, *tag):
        used.add(style.name)
        return text(page, x, baseline, words, style, *tag)

    monkeypatch.setattr(Page, "text", noted)
    for seed in range(5):
        MAKERS[skill](Brush(random.Random(seed), which=which, draws=False))
    assert used <= set(fonts.faces(which))


@pytest.mark.parametrize("skill", MAKERS)
def test_contents_do_not_depend_on_whether_pixels_are_drawn(skill):
    if skill == "no_text":
        pytest.skip("its decoration is drawn only with pixels")
    drawn, known = (MAKERS[skill](Brush(random.Random(3), draws=draws)) for draws in (True, False))
    assert drawn.turns == known.turns
    assert [page.marks for page in drawn.pages] == [page.marks for page in known.pages]


def test_a_glyph_is_found_in_the_cell_of_its_centre():
    page = Page(448, 224, draws=False)
    page.text(100.0, 60.0, "7", Type("dejavu/DejaVuSans", 24, (0, 0, 0)))
    (mark,) = page.marks
    cells = code_map(page.marks, columns=2, rows=1)
    assert cells[..., CHARACTER_CLASS["7"]].sum() == pytest.approx(1, abs=1e-5)
    row, column = np.unravel_index(cells[..., CHARACTER_CLASS["7"]].argmax(), cells.shape[:2])
    assert abs((column + 0.5) * 7 - mark.x) <= 7
    assert abs((row + 0.5) * 14 - mark.y) <= 14


def test_codes_of_tiles_follow_the_order_of_tiles():
    marks = [
        Mark(5, 224 * column + 7 * 3 + 3.5, 224 * row + 14 * 2 + 7, 8, 8)
        for row in (0, 1)
        for column in (0, 1)
    ]
    codes = tile_codes(code_map(marks, columns=2, rows=2)).reshape(4, 16, 16, 2, CODE_CLASSES)
    assert (codes[:, 2, 1, 1, 5] > 0.99).all()


@pytest.mark.parametrize("skill", ["numbers", "receipts", "two_pictures", "clip"])
def test_training_sequences_are_the_prompts_that_serving_renders(skill):
    """The first question of a scene, asked of the runtime, gives the ids that training saw before the answer."""
    scene = MAKERS[skill](Brush(random.Random(2)))
    ids, targets, *_ = encode(scene)
    images = [{"type": "image", "image": page.image} for page in scene.pages]
    text = evaluation.message(skill, scene.turns[0].question, len(images))
    prompt = render(
        [{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
        contract=CONTRACT,
        tile_size=224,
        tokens_per_tile=64,
        options=PromptOptions(),
    )
    served = runtime_tokenizer().encode(prompt.segments, 64)
    assert ids[: len(served)].tolist() == served.tolist()
    assert (targets[: len(served) - 1] == IGNORED).all()
    assert targets[len(served) - 1] == ids[len(served)]
    assert np.array_equal(np.concatenate([page_tiles(page) for page in scene.pages]), prompt.tiles)


def test_answers_are_learned_and_nothing_else():
    scene = MAKERS["lines"](Brush(random.Random(2), draws=False))
    targets = encode(scene).targets
    learned = [int(each) for each in targets[targets != IGNORED]]
    said = "<|im_end|>".join((*(turn.answer for turn in scene.turns), ""))
    assert runtime_tokenizer().decode(learned, keep_special=True) == said


def _spelled(names):
    return runtime_tokenizer().decode([int(each) for each in names if each != IGNORED], keep_special=False)


def test_marks_turn_with_their_page():
    page = Page(448, 224, (255, 255, 255))
    page.text(350.0, 60.0, "H", Type("dejavu/DejaVuSans-Bold", 30, (0, 0, 0)))
    turn(page, 8.0)
    rows, columns = np.nonzero(np.asarray(page.image.convert("L")) < 128)
    assert abs(columns.mean() - page.marks[0].x) < 2
    assert abs(rows.mean() - page.marks[0].y) < 2
    assert page.runs[0].marks == tuple(page.marks)


@pytest.mark.parametrize("name", ["vision", "text", "joint"])
def test_every_stage_learns_resumes_and_counts(name, tmp_path, monkeypatch):
    """Two steps: weights move, are kept, and a second run goes on counting."""
    monkeypatch.setattr(train_vision, "DENSE", 1)
    monkeypatch.setattr(train_vision, "SCENES", 1)
    for module in (train_text, train_joint):
        monkeypatch.setattr(module, "TILES", 1)
    monkeypatch.setattr(train_joint.Joint, "start_from", lambda *_: None)
    monkeypatch.setattr(curriculum, "scenes", _few_scenes)
    make = {
        "vision": train_vision.stage,
        "text": train_text.stage,
        "joint": lambda: train_joint.stage(tmp_path),
    }[name]
    stage = make()
    before = [weight.clone() for weight in stage.model.parameters()]
    _run_one_step(stage, tmp_path, monkeypatch)
    assert any(not torch.equal(*pair) for pair in zip(before, stage.model.parameters(), strict=True))
    _run_one_step(make(), tmp_path, monkeypatch)
    assert torch.load(tmp_path / f"{name}.pt", weights_only=True)["step"] == 2


def _few_scenes(rng, shares, *, draws, **_):
    return [MAKERS["numbers"](Brush(rng, draws=draws))]


def _run_one_step(stage, directory, monkeypatch):
    clock = iter([0.0, 0.0, 0.0])
    monkeypatch.setattr("demo.recipe.loop.time.monotonic", lambda: next(clock, 2.0))
    run(stage, directory, seconds=1)


def test_a_model_that_grew_computes_what_it_did(tmp_path, monkeypatch):
    data = batch([MAKERS["codes"](Brush(random.Random(4), draws=False))], pixels=False)

    def logits(model):
        with torch.no_grad():
            return model.logits(data.ids, data.pictures, image_context_id())

    monkeypatch.setattr(train_text, "Shape", lambda: Shape(text_layers=5))
    small = train_text.stage()
    save(tmp_path / "text.pt", step=7, samples=9, **parts_of(small.model, small.optimizers))
    monkeypatch.setattr(train_text, "Shape", Shape)
    large = train_text.stage()
    grow(large, tmp_path / "text.pt")
    assert resume(large, tmp_path / "text.pt") == (7, 9)
    assert len(large.model.language_model.model.layers) == Shape().text_layers > 5
    assert torch.allclose(logits(large.model), logits(small.model), atol=1e-5)


def test_a_converted_checkpoint_computes_what_the_trained_model_does(tmp_path):
    torch.manual_seed(0)
    model = DemoModel(Shape())
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    convert(model, tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["InternVLChatModel"]
    assert (tmp_path / "model.safetensors").stat().st_size <= 16 << 20

    data = batch([MAKERS["two_pictures"](Brush(random.Random(4)))], pixels=True)
    context = image_context_id()
    with torch.no_grad():
        features = model.vision_model(normalized(data.pictures))
        expected = model.logits(data.ids, features, context)[0].numpy()
    reference = Reference(checkpoint)
    embeds = reference.embeds(reference.features(data.pictures.numpy()))
    inputs = reference.inputs_embeds(data.ids[0].tolist(), embeds, image_context_id=context)
    assert np.abs(reference.logits(inputs) - expected).max() < 1e-4


def test_training_goes_on_from_a_written_checkpoint(tmp_path):
    """Both stages begin with the checkpoint's weights, and what exists is not overwritten."""
    torch.manual_seed(0)
    model, checkpoint = DemoModel(Shape()), tmp_path / "checkpoint"
    convert(model, checkpoint)
    resume_from(checkpoint, tmp_path)
    started = trained(tmp_path).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(started[name], weight.bfloat16().float()), name
    with pytest.raises(FileExistsError, match=r"vision\.pt"):
        resume_from(checkpoint, tmp_path)


def test_a_checkpoint_of_other_depth_is_not_gone_on_from(tmp_path):
    """Its last layers would stand where others belong."""
    convert(DemoModel(Shape(text_layers=3)), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=f"3 text layers, not the recipe's {Shape().text_layers}"):
        resume_from(tmp_path / "checkpoint", tmp_path)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path, monkeypatch):
    options = ["--from", str(tmp_path), "--directory", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["recipe", "resume", *options])
    with pytest.raises(SystemExit, match=r"^error: .*model\.safetensors"):
        recipe.main()


def test_any_letter_of_a_word_may_be_changed_into_no_word_of_the_list():
    rng = random.Random(1)
    made = {words.changed(rng, "bench") for _ in range(2000)}
    assert {"bencch", "ench", "bnech", "benca", "xench"} <= made
    assert {each for each in made if each in words.WORDS} <= {"bench"}


def test_a_price_is_named_after_its_row():
    """Every visual token of a price carries the first letters of what it is the price of."""
    scene = MAKERS["receipts"](Brush(random.Random(3), draws=False), grid=(2, 2))
    (page,) = scene.pages
    names = page_names(page).reshape(-1, KINDS)
    for line, price in zip(page.runs[1::2], page.runs[2::2], strict=True):
        (first,) = {token_square(page, price.marks[0])}
        key = names[first, ORDER + BEFORE : ORDER + BEFORE + 3]
        assert _spelled(key) == line.words[:3]


def test_a_question_says_where_its_row_and_its_column_are_named():
    tags = (Tag("name", "size", 0), Tag("valley", "size", 1), Tag("val", "code", 2))
    question = "What is the size of valley?"
    first, second, head = asked(question, tags)
    assert (question[first:], question[second:], question[head:]) == ("valley?", "alley?", "size of valley?")
    assert asked("What colour is the star?", ()) == (NOT_NAMED, len("What colour is the "), NOT_NAMED)
    assert asked("What is the total?", tags)[0] == len("What is the ")
    assert asked("Read the text.", tags) == (NOT_NAMED, NOT_NAMED, NOT_NAMED)


def test_a_pause_is_not_counted_as_learning(tmp_path, monkeypatch):
    """A step that seems to take an hour leaves the rest of the time as it was."""
    monkeypatch.setattr(train_text, "TILES", 1)
    monkeypatch.setattr(curriculum, "scenes", _few_scenes)
    clock = iter([*range(6), *range(3606, 9999)])
    monkeypatch.setattr("demo.recipe.loop.time.monotonic", lambda: float(next(clock)))
    run(train_text.stage(), tmp_path, seconds=LONGEST_STEP_S + 10)
    assert torch.load(tmp_path / "text.pt", weights_only=True)["step"] >= 5


@pytest.mark.parametrize(
    ("device", "told"), [("cuda", "no CUDA device here"), ("tpu", "neither cpu nor cuda")]
)
def test_a_device_that_is_not_there_is_refused(device, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["recipe", "train", "text", "--device", device])
    with pytest.raises(SystemExit):
        recipe.main()
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["-1", "0", "nan", "long"])
def test_no_time_to_train_is_refused(hours, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe", "train", "text", "--hours", hours])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "--hours" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["cows=3", "shapes", "shapes=many"])
def test_shares_of_what_there_is_not_are_refused(share, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe", "train", "text", "--shares", share])
    with pytest.raises(SystemExit):
        recipe.main()
    assert f"'{share}' is no share; give one of passages" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--eyes"], ["--shares", "shapes=50"]])
def test_what_is_for_the_language_model_is_refused_for_the_vision_tower(option, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["recipe", "train", "vision", "--directory", str(tmp_path), *option])
    with pytest.raises(SystemExit, match="for stage text, and the stage is vision"):
        recipe.main()
    assert not list(tmp_path.iterdir())


def test_shares_of_nothing_at_all_are_refused(monkeypatch, tmp_path):
    shares = [f"{skill}=0" for skill in curriculum.MIXED]
    monkeypatch.setattr(
        sys, "argv", ["recipe", "train", "text", "--directory", str(tmp_path), "--shares", *shares]
    )
    with pytest.raises(SystemExit, match="leaves nothing to draw"):
        recipe.main()


def test_shares_that_are_given_take_the_place_of_the_curriculums(tmp_path, monkeypatch):
    """Of the skills that they name; before, reading comes first."""
    others = tuple((skill, 0.0) for skill in curriculum.MIXED if skill != "shapes")
    stage = recipe._stage(tmp_path, recipe.Part("text", 1, 1, 0, shares=(("shapes", 3.0), *others)))
    drawn = []
    monkeypatch.setattr(curriculum, "scenes", lambda rng, shares, **_: drawn.append(shares) or [_scene()])
    for step in (0, train_text.FIRST_STEPS):
        next(iter(stage.lesson(random.Random(0), step)))
    assert drawn == [curriculum.FIRST, {"shapes": 3.0, **dict(others)}]


def _scene():
    return MAKERS["shapes"](Brush(random.Random(0), draws=False))


def test_curves_show_every_series_of_a_log(tmp_path):
    log = tmp_path / "text.jsonl"
    rows = [
        {"seconds": at, "step": 25 * at, "samples": 9, "loss": 3.0 / at, "words": at / 5}
        for at in range(1, 5)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_series(log) == {"words": [(25 * at, at / 5) for at in range(1, 5)]}
    draw([("answers", read_series(log)), ("loss", read_series(log, ["loss"]))], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        colours = image.getcolors(1 << 16)
    assert (0x1F, 0x77, 0xB4) in {colour for _, colour in colours}
