"""Prompts written for this project (Apache-2.0): verifiable instructions, and open ones.

Each instruction prompt is a short request with one or two constraints that
`lib.evaluation.constraints` can check, so a small model can do some of them within 200 tokens. Test
and probe use different requests.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from lib import prompts

LICENCE = "Apache-2.0 (written for this project)"

# (instruction id, arguments, how the prompt says it). `{word}` is the request's own keyword.
CONSTRAINTS = [
    ("punctuation:no_comma", {}, "Do not use any commas."),
    ("change_case:english_lowercase", {}, "Use lowercase letters only, no capital letters at all."),
    ("change_case:english_capital", {}, "Write everything in CAPITAL LETTERS."),
    ("startend:quotation", {}, "Wrap your whole answer in double quotation marks."),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        'Finish with the exact words "That is all."',
    ),
    (
        "detectable_format:title",
        {},
        "Give it a title wrapped in double angular brackets, i.e. <<title>>.",
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
        'Answer with exactly 3 bullet points, each on a line that starts with "* ".',
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 40},
        "Use fewer than 40 words.",
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 60},
        "Use at least 60 words.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 4},
        "Use fewer than 4 sentences.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "Write exactly 2 paragraphs, separated by a line with three asterisks: ***",
    ),
    ("keywords:existence", {"keywords": ["{word}"]}, 'Include the word "{word}".'),
    ("keywords:forbidden_words", {"forbidden_words": ["{word}"]}, 'Do not use the word "{word}".'),
    (
        "keywords:frequency",
        {"keyword": "{word}", "relation": "at least", "frequency": 3},
        'Use the word "{word}" at least 3 times.',
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "Include at least 2 placeholders in square brackets, such as [name].",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "End with a postscript that starts with P.S.",
    ),
    (
        "detectable_format:json_format",
        {},
        "Give the whole answer as one JSON object and nothing else.",
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "Highlight at least 2 parts with asterisks, like *this part*.",
    ),
]

# Two constraints that one short answer can satisfy together, by position above.
PAIRS = [
    (0, 7),
    (1, 9),
    (3, 9),
    (4, 0),
    (5, 8),
    (11, 7),
    (12, 9),
    (13, 8),
    (14, 15),
    (6, 1),
    (2, 7),
    (5, 4),
    (3, 0),
    (10, 11),
    (17, 12),
    (15, 0),
    (6, 11),
]

REQUESTS = {
    "test": [
        ("Describe a rainy morning in a small town.", "street"),
        ("Explain why people keep houseplants.", "light"),
        ("Write a short note to a neighbour about a lost cat.", "cat"),
        ("Describe how to make a cup of tea.", "water"),
        ("Tell me about the work of a lighthouse keeper.", "sea"),
        ("Give advice to someone who starts a new job.", "ask"),
        ("Describe your ideal library.", "books"),
        ("Explain why sleep matters.", "rest"),
        ("Write an invitation to a village picnic.", "food"),
        ("Describe a bicycle to someone who has never seen one.", "wheels"),
        ("Explain how a letter travels from sender to reader.", "post"),
        ("Write about the first day of spring.", "green"),
        ("Suggest ways to save electricity at home.", "lamp"),
        ("Describe a busy train station.", "platform"),
        ("Tell a child why the sky gets dark at night.", "sun"),
        ("Recommend an activity for a free afternoon.", "walk"),
        ("Explain what a museum is for.", "history"),
        ("Write a thank-you message to a teacher.", "lesson"),
        ("Describe the sound of a forest.", "birds"),
        ("Explain why bread rises.", "yeast"),
        ("Write a notice about a closed swimming pool.", "repair"),
        ("Describe an old wooden boat.", "paint"),
        ("Explain how to water a garden in summer.", "evening"),
        ("Write about a market on a Saturday.", "fruit"),
        ("Describe a good friend.", "listen"),
        ("Explain what makes a map useful.", "road"),
        ("Write a reminder to bring a warm coat.", "cold"),
        ("Describe the view from a hill.", "valley"),
        ("Explain why we wash our hands.", "soap"),
        ("Write about a clock that runs slow.", "time"),
        ("Describe how a potter makes a bowl.", "clay"),
        ("Explain how to pack a suitcase.", "clothes"),
        ("Write about a night train.", "window"),
        ("Describe a kitchen in the early morning.", "table"),
        ("Explain why people run marathons.", "goal"),
        ("Write a note about a broken printer.", "office"),
    ],
    "probe": [
        ("Describe a snowy field.", "white"),
        ("Explain why people read newspapers.", "news"),
        ("Write a short note about a found umbrella.", "umbrella"),
        ("Describe how to boil an egg.", "pan"),
        ("Tell me about the work of a baker.", "oven"),
        ("Give advice to someone who learns to swim.", "breath"),
        ("Describe a quiet park.", "bench"),
        ("Explain why exercise helps.", "heart"),
        ("Write an invitation to a school concert.", "music"),
        ("Describe a guitar to someone who has never seen one.", "strings"),
        ("Explain how a rainbow appears.", "rain"),
        ("Write about the last day of summer.", "beach"),
    ],
    "train": [
        ("Describe a harbour before sunrise.", "boats"),
        ("Explain why people keep diaries.", "memory"),
        ("Write a short note to a colleague about a moved meeting.", "room"),
        ("Describe how to plant a tulip bulb.", "soil"),
        ("Tell me about the work of a shoemaker.", "leather"),
        ("Give advice to someone who moves to a new city.", "map"),
        ("Describe a workshop full of tools.", "hammer"),
        ("Explain why fresh air matters in a classroom.", "window"),
        ("Write an invitation to a chess evening.", "board"),
        ("Describe a sailing boat to someone who has never seen one.", "wind"),
        ("Explain how honey is made.", "bees"),
        ("Write about the first snow of the year.", "roof"),
        ("Suggest ways to waste less food.", "fridge"),
        ("Describe a quiet night on a farm.", "stars"),
        ("Explain what a compass is for.", "north"),
        ("Write a message of congratulation to a runner.", "finish"),
    ],
}

OPEN = {
    "test": [
        "Write a short story that begins with a letter delivered forty years late.",
        "Write a poem of eight lines about a bridge in fog.",
        "Invent a holiday for a village by the sea and describe how it is kept.",
        "Write a dialogue between a river and the stone in its bed.",
        (
            "Describe a colour to someone who has never seen, without naming any object of that"
            " colour."
        ),
        "Write the opening paragraph of a mystery set in a bakery.",
        "Compose a lullaby for a tired robot.",
        "Write a fable with a tortoise, a kite and a lesson about patience.",
        "Describe a city where nobody may speak before noon.",
        "Write a diary entry of the last tree on an island.",
        "Invent three proverbs for people who live underground, and explain one of them.",
        "Write a speech that a teaspoon gives on its retirement.",
        "Tell the story of a lost glove from the glove's point of view.",
        "Write a poem about silence that does not use the word silence.",
        "Describe a dream in which every door opens on the same room.",
        "Write a letter from a lighthouse to a ship that never passes by.",
        "Invent a musical instrument and describe the first concert played on it.",
        "Write a short scene in which two strangers share one umbrella.",
        "Make up a myth that explains why cats purr.",
        "Write a travel guide entry for a town inside a cloud.",
        "Describe autumn as if it were a person arriving by train.",
        "Write a story in exactly six sentences about a clock that runs backwards.",
        "Compose a toast for a friend who is moving to the moon.",
        "Write a recipe for courage.",
        "Describe the same street twice: once in joy, once in grief.",
        "Write a monologue of a museum guard who knows what the paintings do at night.",
        "Invent a game for children that needs only string and shadows.",
        "Write a short love story between two lampposts.",
    ],
    "probe": [
        "Write a poem of four lines about a kettle.",
        "Tell a short story about a key that fits no lock.",
        "Describe a garden that grows at night.",
        "Invent an animal and describe its habits.",
        "Write a letter from winter to spring.",
        "Make up a legend about the first mirror.",
    ],
    "train": [
        "Write a poem of six lines about a ladder in an orchard.",
        "Tell a short story about a postman who delivers only echoes.",
        "Describe a market where people trade memories.",
        "Invent a plant and explain how it travels.",
        "Write a letter from an old coat to its owner.",
        "Make up a legend about the first bridge.",
        "Write a dialogue between a candle and the dark.",
        "Describe the sea to someone who has lived in a desert.",
        "Write the last paragraph of a story about a broken compass.",
        "Compose a song for a snail on a long road.",
        "Invent a festival for the shortest day of the year.",
        "Write a diary entry of a window that faces a wall.",
        "Tell the story of a coin that was spent a thousand times.",
        "Write a short scene between two clocks that disagree.",
        "Describe winter as a guest who stays too long.",
        "Write a recipe for a good night's sleep.",
    ],
}


def instruction(split: str) -> Iterator[dict]:
    """Each request of the split once with one constraint and once with two."""
    requests = REQUESTS[split]
    for turn, width in enumerate((1, 2)):
        table = [(index,) for index in range(len(CONSTRAINTS))] if width == 1 else list(PAIRS)
        random.Random(f"written/{split}/{width}").shuffle(table)
        for position, (request, word) in enumerate(requests):
            chosen = [CONSTRAINTS[index] for index in table[(position + turn) % len(table)]]
            question = " ".join([request, *(phrase.format(word=word) for _, _, phrase in chosen)])
            yield prompts.item(
                f"written_{width}",
                "instruction",
                question,
                None,
                "constraints",
                licence=LICENCE,
                meta={
                    "instruction_id_list": [name for name, _, _ in chosen],
                    "kwargs": [_filled(kwargs, word) for _, kwargs, _ in chosen],
                },
            )


def _filled(kwargs: dict, word: str) -> dict:
    return {
        key: [word] if value == ["{word}"] else word if value == "{word}" else value
        for key, value in kwargs.items()
    }


def creative(split: str) -> Iterator[dict]:
    """Open requests for a judge; nothing about them can be checked by rule."""
    for question in OPEN[split]:
        yield prompts.item("written_open", "creativity", question, None, "open", licence=LICENCE)
