"""Write train.jsonl, test_seen.jsonl and test_unseen.jsonl beside this file; the same bytes every time.

    python -m examples.notes.generate

A note is a phrasing filled with values. Training and test share no value, and test_unseen also shares no phrasing
with training. Any word of a held-out item, shop or name is absent from all training text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from examples.notes.task import Record, prompt, record_text

T = TypeVar("T")

SEED = 0
TRAIN_NOTES_PER_PHRASING = 12
TEST_NOTES_PER_PHRASING = 2

# {date} is written "14 May" and {month_first} "May 14"; the record has "14 May" for both, and null where neither
# stands. Some phrasings carry words, numbers even, that belong to no field.
SEEN_PHRASINGS = (
    "{who} paid {price} for {item} at {shop} on {date}",
    "{item} from {shop}, {price}, {who} paid, {date}",
    "{date}: {who} bought {item} at {shop} for {price}",
    "{price} for {item} at {shop}, paid by {who}",
    "at {shop} {who} got {item} for {price}",
    "on {month_first} {who} spent {price} on {item} at {shop}",
    "{shop}, {date}: {item} {price} ({who})",
    "{who} picked up {item} from {shop}, only {price}",
    "don't forget that {who} paid {price} at {shop} for {item}",
    "{item}: {price}, {shop}, {month_first}, {who}",
    "we owe {who} {price} for the {item} from {shop}",
    "finally bought {item}! {price} at {shop} on {date}, {who} paid",
    "{shop} charged {who} {price} for {item} on {month_first}",
    "receipt from {shop}: {item}, {price}, card of {who}, {date}",
    "{who} went to {shop} on {date} and bought {item} for {price}",
    "{price} gone on {item} again, {who} at {shop}",
    "got the {item} at {shop}, {who} covered it, {price}",
    "{month_first}, {shop}, {who}, {item}, {price}",
    "the {item} that {who} bought at {shop} on {date} cost {price}",
    "{who}: {item}, {price}, {shop}",
    "spent {price} at {shop} on {date}, {item}, {who} has the receipt",
    "{who} ordered {item} from {shop} on {month_first}, {price} with delivery",
    "{shop} had {item} for {price}, so {who} took 2",
    "split 3 ways: {item}, {price}, {shop}, {who} paid on {date}",
    "on {date} {shop} sold {who} {item} for {price}",
    "{price}, {date}, {item}, {shop}, {who}",
    "sent {who} to {shop} for {item}, that was {price}",
    "{who} needs {price} back for {item}, {shop}, {month_first}",
    "{item} on {date}, {price}, {shop}, paid by {who} in cash",
    "{month_first}: {price} at {shop} for {item}, thanks {who}",
    "{who} found {item} at {shop} for {price} on {date}, a bargain",
    "at {shop} on {month_first}: {who}, {item}, {price} after 20 minutes in line",
)

UNSEEN_PHRASINGS = (
    "{who} handed over {price} at {shop} for {item} on {date}",
    "bill of {month_first}: {shop}, {item}, {price}, settled by {who}",
    "it was {who} who paid {shop} {price} for {item}",
    "{item}, bought by {who} on {date} at {shop}, came to {price}",
    "quick stop at {shop}: {who}, {item}, {price}",
    "{price} went to {shop} on {month_first} because {who} wanted {item}",
    "{date}, {who} back at {shop}, this time for {item}, {price} in total",
    "please note {price} for {item}, {who} was at {shop}",
)


def _listed(text: str) -> list[str]:
    return text.split(", ")


def _named(firsts: Sequence[str], seconds: Sequence[str]) -> list[str]:
    """Shop names of two words: each first word with several second ones, so that no two names are the same."""
    return [
        f"{first} {seconds[(3 * index + 17 * turn) % len(seconds)]}"
        for turn in range(4)
        for index, first in enumerate(firsts)
    ]


MONTHS = _listed("January, February, March, April, May, June, July, August, September, October, November, December")


@dataclass(frozen=True)
class Words:
    """The values in words that one side, training or test, may use."""

    items: Sequence[str]
    shops: Sequence[str]
    people: Sequence[str]


_FIRST_WORDS = _listed(
    "Green, Corner, Blue, Old, Sunny, Red, City, River, Golden, Happy, North, Silver, Main, Little, "
    "Big, Daily, Fresh, Stone, White, Black, Oak, Maple, Top, Ocean, Mountain, Paper, Copper, Lucky, "
    "Morning, Quiet, Royal, Second, Simple, Station, Village, Wild, Union, Yellow, Bright, Cozy, "
    "Autumn, Brave, Calm, Cedar, Chapel, Clever, Dancing, Diamond, Early, Elm, Fairy, Family, Flying, "
    "Fox, Friendly, Garden, Gentle, High, Honest, Humble, Jade, Kind, Lavender, Liberty, Lion, "
    "Low, Meadow, Merry, Modern, New, Noon, Orchid, Palm, Peach, Pearl, Polar, Prime, Proud, Rainbow, "
    "Rocky, Rusty, Sandy, School, Scarlet, Shady, Singing, Sleepy, South, Spring, Square, Star, Swift, "
    "Tall, Tiny, True, Twin, Upper, Warm, West, Winter, Wooden, Young"
)
_SECOND_WORDS = _listed(
    "Basket, Market, Anchor, Mill, Side, Barn, Books, House, Spoon, Home, Moon, Street, Box, Bread, "
    "Farm, Bridge, Rabbit, Cat, Tree, Leaf, Floor, View, Gear, Plane, Pot, Penny, Glory, Room, Fork, "
    "Chance, Things, Kiosk, Store, Rose, Door, Idea, Arcade, Attic, Bakery, Bazaar, Cafe, Cellar, "
    "Center, Court, Crown, Depot, Drum, Factory, Feather, Garage, Hall, Horse, Kitchen, Ladder, "
    "Lantern, Lodge, Owl, Pantry, Place, Plaza, Pony, Shop, Supply, Table, Tower, Wheel, Works"
)

# Hundreds of different values, each trained once or twice: with fewer the model learns the words instead of copying.
TRAIN_WORDS = Words(
    items=_listed(
        "apples, bananas, bread, butter, rice, pasta, coffee, green tea, oat milk, orange juice, cheese, "
        "tomatoes, onions, potatoes, chicken soup, pizza, sandwiches, cookies, dark chocolate, ice cream, "
        "cat food, dog biscuits, bird seed, batteries, light bulbs, candles, matches, soap, shampoo, "
        "toothpaste, paper towels, printer ink, pens, envelopes, stamps, notebooks, socks, gloves, running "
        "shoes, rain boots, sunglasses, winter coats, curtains, bed sheets, pillows, desk lamps, tea "
        "kettles, plates, forks, garden tools, tulip bulbs, plant pots, paint, nails, bike locks, train "
        "tickets, movie tickets, birthday cake, flowers, headphones, phone cases, board games, comic books, "
        "vitamins, almonds, apricots, avocados, bacon, bagels, baking powder, barley, basil, beans, beef, "
        "beetroot, berries, biscotti, broccoli, brown sugar, cabbage, cashews, cat litter, celery, cereal, "
        "chili flakes, cinnamon, coconuts, corn, couscous, crackers, cucumbers, dates, dumplings, "
        "eggplants, eggs, fennel, figs, flour, garlic, ginger, granola, ham, hazelnuts, jam, kale, ketchup, "
        "kiwis, leeks, lentils, lettuce, limes, mangoes, maple water, margarine, marmalade, melons, milk, "
        "mint, muesli, mustard, nectarines, nutmeg, oatmeal, olives, oranges, oregano, pancakes, papayas, "
        "parsley, peaches, pears, pepper, pickles, pineapples, plums, pretzels, pumpkins, quinoa, radishes, "
        "raisins, raspberries, salmon, salt, sausages, sesame oil, shrimps, spinach, squash, strawberries, "
        "tofu, tortillas, tuna, turkey, vanilla, vinegar, waffles, walnuts, watermelons, zucchini, ankle "
        "boots, aprons, backpacks, baseball caps, bath towels, belts, bicycle tires, bookends, bottle "
        "openers, bowls, bracelets, brooms, buckets, buttons, cables, calendars, cameras, carpets, chairs, "
        "chess sets, clocks, coasters, combs, cutlery, dresses, drills, duct tape, earplugs, erasers, "
        "extension cords, fans, file folders, flashlights, frying pans, hair dryers, hammers, hand cream, "
        "hangers, hats, hoodies, hoses, jackets, keyboards, kites, knives, ladders, laptop stands, "
        "lipstick, lunch boxes, magnets, markers, mirrors, mops, mouse pads, napkins, necklaces, needles, "
        "oven mitts, padlocks, pajamas, perfume, pliers, postcards, posters, rackets, razors, ribbons, "
        "rings, rulers, saws, scales, sheet music, shirts, shorts, skirts, slippers, spoons, "
        "staplers, stickers, stools, suitcases, sweaters, swimsuits, tape measures, teddy bears, tents, "
        "thermometers, ties, tissues, toasters, toothbrushes, toy trains, trays, umbrellas, vases, wallets, "
        "watches, water bottles, wine glasses, wrenches, yarn, zippers"
    ),
    shops=_named(_FIRST_WORDS, _SECOND_WORDS),
    people=_listed(
        "Anna, Ben, Carlos, Diana, Emma, Felix, Grace, Hassan, Ivan, Julia, Kevin, Laura, Maria, Noor, Oscar, "
        "Paula, Rosa, Simon, Tara, Victor, Wendy, Yusuf, Zoe, Adam, Bella, Chen, David, Elena, Frank, Gina, "
        "Henry, Isabel, Jack, Karim, Leo, Mei, Nina, Omar, Peter, Ruth, Sara, Tom, Uma, Vera, Will, Yara, Lucy, "
        "Raj"
    ),
)

TEST_WORDS = Words(
    items=_listed(
        "noodles, carrots, honey, pencils, mushrooms, peanut sauce, candy, grapes, popcorn, salad, burgers, "
        "cherry pie, fish sticks, hamster hay, trash bags, dish cloths, sponges, scissors, glue, crayons, "
        "wool scarves, rugs, sandals, picture hooks, blankets, mugs, screws, grass fertilizer, museum passes, "
        "balloons, puzzles, cough syrup"
    ),
    shops=_listed(
        "Purple Onion, Marble Deli, Iron Gate, Crystal Lake, Desert Wind, Eagle Nest, Forest Path, Grand Central, "
        "Rolling Valley, Island Spice, Jolly Baker, Kings Cross, Lemon Grove, Magic Carpet, Noble Roast, "
        "Pine Hill, Rapid Repair, Summer Fair, Thunder Road, Uptown Pharmacy, Velvet Rope, Western Trail, "
        "Amber Lane, Busy Bee"
    ),
    people=_listed(
        "Alice, Bruno, Clara, Daniel, Eva, Fatima, George, Helen, Irene, James, Kate, Louis, Martin, Nadia, "
        "Olivia, Paul, Rachel, Samuel, Teresa, Vincent, Walter, Sophie, Miguel, Ahmed"
    ),
)


@dataclass(frozen=True)
class Values:
    """All values that one side may use: the words, days with their months, and prices."""

    words: Words
    dates: Sequence[tuple[int, str]]
    prices: Sequence[int | float]


def files() -> dict[str, bytes]:
    """Make the three datasets: file name to content."""
    source = random.Random(SEED)
    dates = _halves(_shuffled(_dates(), source))
    prices = _halves(_shuffled(_prices(), source))
    train = Values(TRAIN_WORDS, dates[0], prices[0])
    test = Values(TEST_WORDS, dates[1], prices[1])
    # The tests keep the order of the phrasings, so that the first lines of a file have each phrasing once.
    datasets = {
        "train.jsonl": _shuffled(_lines(SEEN_PHRASINGS * TRAIN_NOTES_PER_PHRASING, train, source), source),
        "test_seen.jsonl": _lines(SEEN_PHRASINGS * TEST_NOTES_PER_PHRASING, test, source),
        "test_unseen.jsonl": _lines(UNSEEN_PHRASINGS * TEST_NOTES_PER_PHRASING, test, source),
    }
    return {name: "".join(lines).encode() for name, lines in datasets.items()}


def _dates() -> list[tuple[int, str]]:
    return [(day, month) for month in MONTHS for day in range(1, 29)]


def _prices() -> list[int | float]:
    # Whole prices start above the days of a month, so that a price is never another note's day. Prices in cents
    # don't end in 0: JSON would drop it, and the record would no longer be a copy of the note.
    whole: list[int | float] = [*range(32, 200)]
    # Every seventh amount keeps two prices in five whole.
    return whole + [cents / 100 for cents in range(105, 2000, 7) if cents % 10]


def _lines(phrasings: Sequence[str], values: Values, source: random.Random) -> list[str]:
    """Fill each phrasing with the next value of each kind, and write it as one line of a dataset."""
    items, shops = _dealt(values.words.items, source), _dealt(values.words.shops, source)
    people, dates = _dealt(values.words.people, source), _dealt(values.dates, source)
    prices = _dealt(values.prices, source)
    lines = []
    for phrasing in phrasings:
        day, month = next(dates)
        record: Record = {
            "item": next(items),
            "price": next(prices),
            "shop": next(shops),
            "who": next(people),
            "date": f"{day} {month}" if "{date}" in phrasing or "{month_first}" in phrasing else None,
        }
        lines.append(_line(phrasing.format(**record, month_first=f"{month} {day}"), record))
    return lines


def _line(note: str, record: Record) -> str:
    messages = [*prompt(note), {"role": "assistant", "content": record_text(record)}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _dealt(pool: Sequence[T], source: random.Random) -> Iterator[T]:
    """Give every value of the pool once in a shuffled order, then again in another, without end."""
    while True:
        yield from _shuffled(pool, source)


def _shuffled(pool: Sequence[T], source: random.Random) -> list[T]:
    # Python promises the sequence of random() alone for a seed in later versions, not that of shuffle().
    return sorted(pool, key=lambda _: source.random())


def _halves(pool: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    return pool[::2], pool[1::2]


def main() -> None:
    """Write the files beside this one."""
    for name, content in files().items():
        Path(__file__).with_name(name).write_bytes(content)


if __name__ == "__main__":
    main()
