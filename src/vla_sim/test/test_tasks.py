import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_sim.assets.objects import COLOURS, FOOTPRINT
from vla_sim.tasks import (
    GAP,
    HOME_TOOL,
    NEAR,
    TASKS,
    X_RANGE,
    Y_RANGE,
    contrast,
    parse_instruction,
    sample_episode,
)

tasks, seeds = st.sampled_from(TASKS), st.integers(0, 2**62)


def kind(placement):
    return placement.slot.split('_')[0]


@given(tasks, seeds)
def test_an_episode_is_all_determined_by_task_and_seed(task, seed):
    a, b = sample_episode(task, seed), sample_episode(task, seed)
    assert a.instruction == b.instruction
    assert a.placements == b.placements
    assert np.array_equal(a.joint_offset, b.joint_offset)
    assert np.array_equal(a.cameras['wrist'].rotation, b.cameras['wrist'].rotation)


@given(tasks, seeds)
def test_props_stand_apart_and_within_reach(task, seed):
    placements = sample_episode(task, seed).placements
    for a, b in itertools.combinations(placements, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) >= FOOTPRINT[kind(a)] + FOOTPRINT[kind(b)] + GAP
    for p in placements:
        assert X_RANGE[0] <= p.x <= X_RANGE[1]
        assert Y_RANGE[0] <= p.y <= Y_RANGE[1]


@given(tasks, seeds)
def test_names_are_distinct_and_the_goal_is_among_them(task, seed):
    episode = sample_episode(task, seed)
    names = [p.name for p in episode.placements]
    assert len(set(names)) == len(names)
    assert {episode.goal.object, episode.goal.target} - {''} <= set(names)
    assert episode.goal.object != episode.goal.target
    assert all(COLOURS[p.name.split('_')[0]] == p.rgb for p in episode.placements if p.rgb is not None)


@given(tasks, seeds)
def test_every_instruction_is_understood_as_it_was_meant(task, seed):
    episode = sample_episode(task, seed)
    assert parse_instruction(episode.instruction) == episode.goal
    assert parse_instruction(f'  {episode.instruction.upper()}. ') == episode.goal


def test_seeds_differ_in_words_colours_and_places():
    episodes = [sample_episode('stack_block', seed) for seed in range(50)]
    assert len({e.instruction for e in episodes}) > 20
    assert len({e.goal.object for e in episodes}) == len(COLOURS)
    assert len({e.placements[0].x for e in episodes}) == 50


@pytest.mark.parametrize('text', ['', 'dance', 'press the pink button', 'put the tomato in the tomato bowl'])
def test_what_is_no_task_is_refused_with_examples(text):
    with pytest.raises(ValueError, match='press the red button; stack the red block on the blue block'):
        parse_instruction(text)


def test_unknown_task_and_negative_seed_are_refused():
    with pytest.raises(ValueError, match='press_button, stack_block, fill_bowl'):
        sample_episode('sweep', 0)
    with pytest.raises(ValueError, match='0 or above, got -1'):
        sample_episode('press_button', -1)


@given(tasks, seeds, st.data())
def test_any_instruction_of_the_task_finds_its_objects_in_the_scene(task, seed, data):
    asked = sample_episode(task, data.draw(seeds)).instruction
    plain, episode = sample_episode(task, seed), sample_episode(task, seed, asked)
    names = {p.name for p in episode.placements}
    assert episode.instruction == asked and len(names) == len(plain.placements)
    assert {episode.goal.object, episode.goal.target} - {''} <= names
    assert [p.slot for p in episode.placements if p.rgb] == [p.slot for p in plain.placements if p.rgb]
    assert all(COLOURS[p.name.split('_')[0]] == p.rgb for p in episode.placements if p.rgb is not None)
    if {episode.goal.object, episode.goal.target} - {''} <= {p.name for p in plain.placements}:
        assert episode.placements == plain.placements


@pytest.mark.parametrize('task', TASKS)
def test_a_contrast_is_the_same_scene_with_another_object_as_near(task):
    found = [e for e in (sample_episode(task, seed) for seed in range(600)) if contrast(e)]
    assert len(found) > 5
    for episode in found:
        other = sample_episode(task, episode.seed, contrast(episode))
        assert other.placements == episode.placements and other.goal != episode.goal
        assert np.array_equal(other.joint_offset, episode.joint_offset)
        at = {p.name: (p.x, p.y) for p in episode.placements}
        changed = [
            (a, b) for a, b in zip(*((e.goal.object, e.goal.target) for e in (episode, other)), strict=True) if a != b
        ]
        ((right, wrong),) = changed
        assert abs(np.hypot(*np.subtract(at[right], HOME_TOOL)) - np.hypot(*np.subtract(at[wrong], HOME_TOOL))) <= NEAR


def test_an_instruction_of_another_task_or_onto_itself_is_refused():
    with pytest.raises(ValueError, match='one of task press_button, not of stack_block'):
        sample_episode('stack_block', 0, 'press the red button')
    with pytest.raises(ValueError, match='an object cannot be put onto itself'):
        parse_instruction('stack the red block on the red block')
