"""The objects of all tasks: colours, kinds, sizes. No MuJoCo here."""

COLOURS = {
    'red': (0.80, 0.08, 0.08),
    'green': (0.10, 0.55, 0.16),
    'blue': (0.08, 0.22, 0.75),
    'yellow': (0.95, 0.76, 0.08),
    'orange': (0.95, 0.38, 0.03),
    'purple': (0.45, 0.13, 0.60),
}
PRODUCE = ('tomato', 'banana', 'carrot', 'eggplant', 'lemon')
BLOCK_EDGE, BOWL_HEIGHT = 0.040, 0.045  # [m]
# Radius of the circle around the prop as seen from above [m], by kind.
FOOTPRINT = {
    'button': 0.050,
    'block': 0.029,
    'bowl': 0.072,
    'tomato': 0.029,
    'banana': 0.058,
    'carrot': 0.058,
    'eggplant': 0.056,
    'lemon': 0.034,
}


def group_of(body: str) -> str:
    """Return the group of exchangeable bodies of an instruction: 'button', 'block', 'bowl' or 'produce'."""
    return 'produce' if body in PRODUCE else body.split('_')[1]


def first_word(body: str) -> str:
    """Return the word of an instruction for a body: its colour, or the name of the produce."""
    return body.split('_', maxsplit=1)[0]


def spoken(body: str) -> str:
    """Return the name of a body as words."""
    return body.replace('_', ' ')
