"""The id space of the network's inputs and outputs: text, special marks, image codes, state and action bins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Marks of the prompts, with their ids in the released vocabulary. They are inserted as ids and never parsed from text,
# so that an instruction cannot contain one.
RELEASED_SPECIALS = {
    'bos': 126080,
    'eos': 126081,
    'soi': 126084,  # start and end of an image
    'eoi': 126085,
    't2i': 126088,  # mode marks: predict an image, write text, act
    'mmu': 126089,
    'mm2a': 126097,
    'pad': 126093,
    'soa': 126098,  # start and end of actions
    'eoa': 126099,
    'dim7': 126100,
    'dim14': 126101,
    'sostate': 126102,
    'eostate': 126103,
    'mask': 126336,
}
RELEASED_TEXT = 126349  # length of the released tokenizer; its reserved ids are the marks above
RELEASED_SIZE = 136704


@dataclass(frozen=True)
class Vocabulary:
    """The layout of all ids: `[ text and marks | image codes | (unused) | depth codes | bins ]`."""

    size: int  # rows of the embedding
    text: int  # ids of the text tokenizer, the first ones
    image_offset: int  # id of image code 0
    codes: int  # number of image codes
    bins: int  # number of state and action bins; they are the last ids
    bos: int
    eos: int
    soi: int
    eoi: int
    t2i: int
    mmu: int
    mm2a: int
    pad: int
    soa: int
    eoa: int
    dim7: int
    dim14: int
    sostate: int
    eostate: int
    mask: int
    depth: int = 0  # number of depth codes; they are the ids before the bins

    def __post_init__(self) -> None:
        if self.codes < 2 or self.bins < 2:
            raise ValueError(f'a vocabulary needs at least 2 image codes and 2 bins, got {self.codes} and {self.bins}')
        marks = {name: getattr(self, name) for name in RELEASED_SPECIALS}
        if min(marks.values()) < 0 or max(marks.values()) >= self.image_offset or len(set(marks.values())) < len(marks):
            raise ValueError(
                f'the marks must be distinct ids below the image codes at {self.image_offset}, got {marks}'
            )
        if not 0 < self.text <= self.image_offset:
            raise ValueError(f'text {self.text} must be above 0 and end before the image codes at {self.image_offset}')
        if self.depth < 0:
            raise ValueError(f'depth must be 0 or more, got {self.depth}')
        if self.image_offset + self.codes > self.depth_offset:
            raise ValueError(
                f'image codes {self.image_offset}..{self.image_offset + self.codes - 1} and the ids from '
                f'{self.depth_offset} overlap: vocab_size {self.size} is too small'
            )

    @property
    def bins_offset(self) -> int:
        """The id of bin 0."""
        return self.size - self.bins

    @property
    def depth_offset(self) -> int:
        """The id of depth code 0."""
        return self.bins_offset - self.depth

    @classmethod
    def released(cls) -> 'Vocabulary':
        """Return the layout of the released 8B checkpoints."""
        return cls(
            size=RELEASED_SIZE,
            text=RELEASED_TEXT,
            image_offset=RELEASED_TEXT,
            codes=8192,
            bins=2048,
            **RELEASED_SPECIALS,
        )

    @classmethod
    def of_released(cls, config: Mapping[str, Any], text: int) -> 'Vocabulary':
        """Return the layout of a released config.json. text: length of its tokenizer, the id of the first image code.

        `llm_vocab_size` is not this id, as it counts unused rows. Raises ValueError naming a wrong field.
        """
        wanted = ('vocab_size', 'action_vocab_size', 'codebook_size', 'mask_token_id', 'eos_token_id')
        for name in wanted:
            if not isinstance(config.get(name), int):
                raise ValueError(f'field {name} must be a whole number, got {config.get(name)!r}: restore config.json')
        if text != RELEASED_TEXT:
            raise ValueError(f'the tokenizer has {text} tokens, the released ones have {RELEASED_TEXT}: restore it')
        size, bins, codes, mask, eos = (config[name] for name in wanted)
        marks = RELEASED_SPECIALS | {'mask': mask, 'eos': eos}
        return cls(size=size, text=text, image_offset=text, codes=codes, bins=bins, **marks)

    @classmethod
    def small(cls, text: int, codes: int, bins: int, depth: int = 0) -> 'Vocabulary':
        """Return a layout without gaps: `text` ids of a text tokenizer, marks, image codes, depth codes, bins."""
        marks = {name: text + i for i, name in enumerate(RELEASED_SPECIALS)}
        image_offset = text + len(marks)
        size = image_offset + codes + depth + bins
        return cls(size=size, text=text, image_offset=image_offset, codes=codes, bins=bins, depth=depth, **marks)
