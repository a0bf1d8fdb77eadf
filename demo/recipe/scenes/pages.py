"""Pages over several tiles: receipts, tables and signs, drawn at the size of a tile grid."""

from __future__ import annotations

from demo.recipe import questions as ask
from demo.recipe.render import words as text
from demo.recipe.render.dense import TILE, colours, fitting_size, random_type
from demo.recipe.render.page import Page, Tag, Type, text_width
from demo.recipe.scene import Brush, Scene, Turn

# Columns and rows of tiles. A receipt is narrow, a sign wide. One tile comes often, because it is cheap to learn on.
RECEIPT_GRIDS = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4))
TABLE_GRIDS = ((1, 1), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3))
# Type of pages over several tiles: hardly to be read in the thumbnail, which shows it a half to a quarter as large.
SMALL_PX = (24, 30)
MOST_LINES = 6
SIGN_GRIDS = ((1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (4, 2))


def receipts(brush: Brush, grid: tuple[int, int] | None = None) -> Scene:
    """A shop's name, goods with prices, their sum."""
    rng = brush.rng
    columns, rows = grid or rng.choice(RECEIPT_GRIDS)
    page, style = _sheet(brush, columns, rows)
    pitch = style.size_px * rng.uniform(1.3, 1.7)
    most = int((page.height - 8) / pitch)
    with_name = most >= 5
    count = max(1, min(rng.randint(2, 10), most - 1 - with_name))
    goods = rng.sample(
        text.goods(brush.which) if brush.which == "train" else text.goods("train") + text.goods("held_out"),
        count,
    )
    prices = [rng.randint(10, 1999) for _ in goods]
    shop = f"{text.word(rng, brush.which).capitalize()} {rng.choice(text.SHOPS)}"
    lines = [(name, _money(cents)) for name, cents in zip(goods, prices, strict=True)]
    lines.append((rng.choice(("Total", "TOTAL", "Sum")), _money(sum(prices))))
    _receipt_lines(brush, page, style, [shop] if with_name else [], lines, pitch)
    turns = _receipt_turns(brush, goods, prices, shop if with_name else None)
    return Scene("receipts", (page,), tuple(turns))


def _receipt_lines(
    brush: Brush, page: Page, style: Type, head: list[str], lines: list[tuple[str, str]], pitch: float
) -> None:
    rng = brush.rng
    slack = page.height - pitch * (len(head) + len(lines)) - 8
    y = 4 + rng.uniform(0, max(0.0, slack)) + 0.8 * pitch
    left, right = rng.uniform(4, 14), page.width - rng.uniform(4, 14)
    for name in head:
        shown = fitting_size(name, style, page.width - 12)
        page.text((page.width - text_width(name, shown)) / 2, y, name, shown)
        y += pitch
    for number, (name, price) in enumerate(lines, 1):
        shown, tag = fitting_size(name + "  " + price, style, right - left), Tag(name, number=number)
        page.text(left, y, name, shown, tag)
        page.text(right - text_width(price, shown), y, price, shown, tag._replace(column=1))
        y += pitch


def _receipt_turns(brush: Brush, goods: list[str], prices: list[int], shop: str | None) -> list[Turn]:
    rng = brush.rng
    asked = rng.sample(range(len(goods)), min(brush.questions, len(goods)))
    turns = [Turn(ask.PRICE.format(goods[at]), _money(prices[at])) for at in asked]
    turns.append(Turn(ask.TOTAL, _money(sum(prices))))
    if shop is not None:
        turns.append(Turn(ask.SHOP, shop))
    absent = rng.choice([name for name in text.goods(brush.which) if name not in goods])
    if rng.random() < 0.3:
        turns.append(Turn(ask.PRICE.format(absent), ask.NO_ITEM.format(absent)))
    rng.shuffle(turns)
    return turns


def tables(brush: Brush, grid: tuple[int, int] | None = None) -> Scene:
    """A row of headings, then rows of a name and values."""
    rng = brush.rng
    columns, rows = grid or rng.choice(TABLE_GRIDS)
    page, style = _sheet(brush, columns, rows)
    pitch = style.size_px * rng.uniform(1.4, 1.8)
    count = max(1, min(rng.randint(2, 8), int((page.height - 8) / pitch) - 1))
    values = 1 if columns == 1 else rng.randint(1, min(3, columns))
    heads = rng.sample(ask.COLUMNS, values)
    names = _row_names(brush, count)
    cells = [[str(rng.randint(1, 999)) for _ in heads] for _ in names]
    lefts = [6.0, *(page.width * (0.45 + 0.55 * at / values) for at in range(values))]
    room = min(page.width * 0.45 - 10, page.width * 0.55 / values)
    widest = max((*names, *heads), key=lambda each: text_width(each, style))
    style = fitting_size(widest, style, room)
    y = 4 + 0.8 * pitch + rng.uniform(0, max(0.0, page.height - pitch * (count + 1) - 8))
    rows_of_cells = (("name", *heads), *((name, *line) for name, line in zip(names, cells, strict=True)))
    for number, row in enumerate(rows_of_cells):
        for column, (left, head, cell) in enumerate(zip(lefts, ("", *heads), row, strict=True)):
            page.text(left, y, cell, style, Tag(row[0], head, number, column))
        y += pitch
    return Scene("tables", (page,), tuple(_table_turns(brush, heads, names, cells)))


def _row_names(brush: Brush, count: int) -> list[str]:
    """Different words; for training half of them invented, or the few there are would be said by heart."""
    known = brush.rng.sample(text.words(brush.which), count)
    if brush.which == "held_out":
        return known
    mixed = [name if brush.rng.random() < 0.5 else text.invented(brush.rng) for name in known]
    return mixed if len(set(mixed)) == count else known


def _table_turns(brush: Brush, heads: list[str], names: list[str], cells: list[list[str]]) -> list[Turn]:
    rng = brush.rng
    turns = []
    for at in rng.sample(range(len(names)), min(brush.questions, len(names))):
        column = rng.randrange(len(heads))
        turns.append(Turn(ask.CELL.format(heads[column], names[at]), cells[at][column]))
    rows = rng.sample(range(len(names)), min(brush.questions // 3, len(names)))
    turns += [Turn(ask.ROW.format(at + 1), " ".join((names[at], *cells[at]))) for at in rows]
    rng.shuffle(turns)
    return turns


def signs(brush: Brush, grid: tuple[int, int] | None = None) -> Scene:
    """One or two lines of words and numbers in the middle of a coloured board; for training often a board full."""
    rng = brush.rng
    columns, rows = grid or rng.choice(SIGN_GRIDS)
    page, style = _sheet(brush, columns, rows)
    pitch = 1.4 * style.size_px
    is_full = brush.which == "train" and rng.random() < 0.6
    most = (min(MOST_LINES, int(page.height / pitch)), 1 + columns) if is_full else (2, 2)
    count = rng.randint(1, most[0])
    lines = [" ".join(_sign_word(brush) for _ in range(rng.randint(1, most[1]))) for _ in range(count)]
    style = fitting_size(max(lines, key=lambda each: text_width(each, style)), style, page.width - 12)
    pitch = 1.4 * style.size_px
    y = rng.uniform(0, page.height - pitch * count) + 0.75 * pitch
    for number, line in enumerate(lines, 1):
        page.text(
            rng.uniform(6, max(7.0, page.width - 6 - text_width(line, style))),
            y,
            line,
            style,
            Tag(line, number=number),
        )
        y += pitch
    asked = (0, *rng.sample(range(1, count), min(count - 1, brush.questions // 2))) if is_full else (0,)
    turns = (Turn(ask.LINE.format(at + 1), lines[at]) for at in asked)
    return Scene("signs", (page,), (Turn(ask.SIGN, "\n".join(lines)), *turns))


def _sign_word(brush: Brush) -> str:
    kind = brush.rng.random()
    if kind < 0.6:
        return text.word(brush.rng, brush.which)
    return str(brush.rng.randint(1, 999)) if kind < 0.85 else text.code(brush.rng)


def _sheet(brush: Brush, columns: int, rows: int) -> tuple[Page, Type]:
    background, ink = colours(brush.rng)
    smallest, largest = brush.sizes_px if columns * rows == 1 else SMALL_PX
    style = random_type(brush.rng, ink, smallest, min(largest, smallest + 10), which=brush.which)
    return brush.page(columns * TILE, rows * TILE, background), style


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"
