import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_model.prompt import PromptBuilder
from vla_model.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.vocabulary import RELEASED_SPECIALS, Vocabulary

TEXT = TextTokenizer.load(NANO_FILE)
V = Vocabulary.small(TEXT.size, codes=64, bins=128)


def builder(**changes):
    settings = {
        'views': 2,
        'view_tokens': 4,
        'state_dim': 8,
        'action_dim': 8,
        'horizon': 3,
        'max_prompt_tokens': 200,
    } | changes
    return PromptBuilder(TEXT, V, **settings, device=torch.device('cpu'))


def test_small_vocabulary_has_no_gaps_and_no_overlaps():
    marks = [getattr(V, name) for name in RELEASED_SPECIALS]
    assert sorted(marks) == list(range(TEXT.size, V.image_offset))
    assert V.image_offset + 64 == V.bins_offset
    assert V.bins_offset + 128 == V.size


def test_released_vocabulary():
    v = Vocabulary.released()
    assert (v.image_offset, v.bins_offset, v.size, v.mask) == (126349, 134656, 136704, 126336)


def test_vocabulary_refuses_overlap():
    with pytest.raises(ValueError, match='too small'):
        Vocabulary(
            size=200, text=20, image_offset=20, codes=150, bins=100, **{n: i for i, n in enumerate(RELEASED_SPECIALS)}
        )


@given(st.text(max_size=60))
def test_any_text_comes_back_and_contains_no_mark(text):
    text = text.encode('utf-8', 'ignore').decode()
    ids = TEXT.encode(text)
    assert TEXT.decode(ids) == text
    assert all(i < TEXT.size for i in ids)


def test_slots_hold_what_they_are_given_and_the_rest_stays_masked():
    template = builder().action('press the red button')
    state = torch.arange(8) + V.bins_offset
    views = torch.arange(8).reshape(2, 4) + V.image_offset
    first = torch.arange(8) + V.bins_offset + 50
    ids = template.fill(state, views, first)[0]
    assert torch.equal(ids[template.state], state)
    assert all(torch.equal(ids[slot], view) for slot, view in zip(template.views, views, strict=True))
    block = ids[template.block]
    assert torch.equal(block[:8], first)
    assert (block[8:] == V.mask).all() and len(block) == 24
    assert int((ids == V.mask).sum()) == 16
    assert ids[template.block.start - 1] == V.soa and ids[-1] == V.eoa
    assert (template.ids[template.block] == V.mask).all(), 'the cached template must not change'


def test_an_instruction_is_tokenized_once():
    b = builder()
    assert b.action('press the red button') is b.action('press the red button')


@pytest.mark.parametrize('text', ['', '   ', '\n'])
def test_refuses_an_empty_instruction(text):
    with pytest.raises(ValueError, match='instruction is empty'):
        builder().action(text)


@given(st.integers(1, 80))
def test_refuses_exactly_what_does_not_fit(words):
    b = builder(max_prompt_tokens=100)
    text = 'red ' * words
    try:
        template = b.action(text)
    except ValueError as error:
        count, room = len(TEXT.encode(text)), int(str(error).split('room for ')[1].split(':')[0])
        assert f'has {count} tokens' in str(error) and count > room
    else:
        assert template.block.start - 1 <= 100
