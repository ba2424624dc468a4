import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_model.tokens import prompt_texts
from vla_model.tokens.prompt import PromptBuilder, PromptLayout
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import RELEASED_SPECIALS, Vocabulary

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
    return PromptBuilder(TEXT, V, PromptLayout(**settings), torch.device('cpu'))


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


texts = st.text(min_size=1, max_size=30).filter(lambda t: t.strip() and t.isprintable())


@given(
    texts,
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(0, 20),
    st.booleans(),
)
def test_every_prompt_keeps_what_is_put_into_it(text, views, state_dim, action_dim, horizon, previous, with_state):
    b = builder(views=views, state_dim=state_dim, action_dim=action_dim, horizon=horizon, max_prompt_tokens=400)
    images = torch.arange(4 * views).reshape(views, 4) + V.image_offset
    state = torch.arange(state_dim) + V.bins_offset
    before = torch.arange(previous) + V.bins_offset + 20 if previous else None
    for template, given_state, given_before in (
        (b.action(text, previous), state, before),
        (b.plan(text, 9, with_state), state if with_state else None, None),
        (b.image(text, with_state), state if with_state else None, None),
    ):
        ids = template.fill(given_state, images, None, given_before)
        assert ids[0, 1] == V.bos
        assert [ids[0, slot].tolist() for slot in template.views] == images.tolist()
        assert ids[0, template.state].tolist() == ([] if given_state is None else state.tolist())
        assert ids[0, template.actions].tolist() == ([] if given_before is None else before.tolist())
        block = template.block
        assert (ids[0, block] == V.mask).all() and int((ids == V.mask).sum()) == block.stop - block.start
        padded, valid = template.padded(ids)
        assert torch.equal(padded[valid], ids[0]) and (padded[~valid] == V.pad).all()
        assert not valid[0, : template.left].any() and valid[0, template.left : template.left + ids.shape[1]].all()


def test_padded_forms_have_the_length_of_training():
    seven, other = builder(action_dim=7, horizon=8, max_prompt_tokens=910), builder(horizon=8, action_dim=16)
    state, views = torch.zeros(8, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    ids, valid = seven.action('go').padded(seven.action('go').fill(state, views))
    assert ids.shape == valid.shape == (1, 1024) and ids[0, 910] == V.soa and ids[0, 967] == V.eoa
    assert not valid[0, 968:].any()
    ids, _ = other.action('go').padded(other.action('go').fill(state, views))
    assert ids.shape == (1, 200 + 2 + 128) and ids[0, 200] == V.soa and ids[0, -1] == V.eoa
    ids, _ = other.image('go').padded(other.image('go').fill(None, views))
    assert ids.shape == (1, 200 + 2 + 128) and ids[0, -1] == V.eoi and ids[0, -6] == V.soi


def test_the_mark_of_dimensions():
    assert V.dim7 in builder(action_dim=7).action('go').ids and V.dim14 not in builder(action_dim=7).action('go').ids
    assert V.dim14 in builder(action_dim=16).image('go').ids


def test_a_prompt_without_a_task_lacks_nothing_but_the_task():
    b = builder()
    task = len(TEXT.encode('press the red button'))
    with_task, without = b.image('press the red button').ids.tolist(), b.image(None).ids.tolist()
    assert without == with_task[:2] + with_task[2 + task :]


def test_what_has_no_slot_is_refused():
    b = builder()
    state, views = torch.zeros(8, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match='has 8 slots for state, got 0'):
        b.action('go').fill(None, views)
    with pytest.raises(ValueError, match='has 0 slots for state, got 8'):
        b.image('go').fill(state, views)
    with pytest.raises(ValueError, match='has 5 slots for actions, got 0'):
        b.action('go', 5).fill(state, views)
    with pytest.raises(ValueError, match='has 24 slots, got 25'):
        b.action('go').fill(state, views, torch.zeros(25, dtype=torch.int64))


@pytest.mark.parametrize('make', [lambda b, t: b.plan(t, 8), lambda b, t: b.image(t)])
def test_plans_and_images_refuse_what_does_not_fit(make):
    b = builder(max_prompt_tokens=60)
    with pytest.raises(ValueError, match=r'instruction has .* tokens, there is room for'):
        make(b, 'red ' * 200)
    with pytest.raises(ValueError, match='instruction is empty'):
        make(b, ' ')


@pytest.mark.parametrize(
    ('finished', 'share'), [([], 0.0), (['reach'], 0.25), (['reach', 'grasp', 'lift', 'place'], 1.0), (['dance'], 0.0)]
)
def test_a_plan_text_has_its_progress(finished, share):
    text = prompt_texts.plan('tidy up', ['reach', 'grasp', 'lift', 'place'], finished, 'grasp')
    assert prompt_texts.progress(text) == share
    assert math.isnan(prompt_texts.progress('no idea'))
