"""Tool poses to joint positions on the Panda, and chunks of end-effector models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import follow, quaternion_matrix, rotation_matrix, rotation_vector
from vla_core.profile import RobotProfile
from vla_model.observation import prefix_steps
from vla_model.policy import WORLD, PolicyInfo, Prediction, WorldOptions
from vla_model.types import TOOL, Chunk, Observation
from vla_policy_node.policy.end_effector import EndEffectorPolicy, to_actions

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
LOWER, UPPER, HOME = PROFILE.position_lower, PROFILE.position_upper, PROFILE.home


@pytest.fixture(scope='module')
def urdf(panda_urdf):
    return panda_urdf.read_text()


@pytest.fixture(scope='module')
def kinematics(urdf):
    return load_kinematics(urdf, PROFILE)


@pytest.mark.parametrize('angle', [0.0, 1e-9, 1e-5, 0.3, 2.0, 3.1415, np.pi])
def test_rotation_vectors_and_matrices(angle):
    for axis in np.random.default_rng(0).normal(size=(20, 3)):
        vector = angle * axis / np.linalg.norm(axis)
        matrix = rotation_matrix(vector)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(matrix @ vector, vector, atol=1e-12)
        assert np.trace(matrix) == pytest.approx(1 + 2 * np.cos(angle))
        back = rotation_vector(matrix)
        assert min(np.abs(back - vector).max(), np.abs(back + vector).max() if angle > 3.14 else np.inf) < 1e-6
        half = np.append(np.cos(angle / 2), np.sin(angle / 2) * axis / np.linalg.norm(axis))
        np.testing.assert_allclose(quaternion_matrix(-3 * half), matrix, atol=1e-12)


def test_the_jacobian_is_the_derivative_of_the_pose(kinematics):
    q, step = HOME + 0.1, 1e-6
    at, rotation, jacobian = kinematics(q)
    for joint in range(7):
        moved = q.copy()
        moved[joint] += step
        there, turned, _ = kinematics(moved)
        np.testing.assert_allclose((there - at) / step, jacobian[:3, joint], atol=1e-5)
        np.testing.assert_allclose(rotation_vector(turned @ rotation.T) / step, jacobian[3:, joint], atol=1e-5)


def test_the_flange_is_where_the_data_sheet_has_it(kinematics):
    """At zero the Panda stands upright: 0.333 + 0.316 + 0.384 - 0.107 - 0.1034 m high, 0.088 m out (DH of Franka)."""
    at, _, _ = kinematics(np.zeros(7))
    np.testing.assert_allclose(at, [0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107 - 0.1034], atol=1e-3)


def test_a_description_of_another_robot(urdf):
    with pytest.raises(ValueError, match='no joint panda_joint4'):
        load_kinematics(urdf.replace('"panda_joint4"', '"other"'), PROFILE)
    with pytest.raises(
        ValueError, match=r'no link panda_hand_tcp: .*panda_link8.* move with panda_joint7.*tool_offset'
    ):
        load_kinematics(urdf.replace('"panda_hand_tcp"', '"other"'), PROFILE)
    with pytest.raises(ValueError, match='no URDF that Pinocchio reads'):
        load_kinematics('<robot', PROFILE)


@pytest.mark.parametrize('q', [HOME, HOME + 0.3])
def test_a_tool_that_the_description_lacks_is_where_its_offset_from_a_link_puts_it(urdf, kinematics, q):
    """The hand of a Panda is turned by -45 degrees on its flange, and its tool is 0.1034 m along z."""
    offset = np.array([0.0, 0.0, 0.1034, 0.0, 0.0, -np.pi / 4])
    bare = load_kinematics(urdf, replace(PROFILE, tool_frame='panda_link8', tool_offset=offset))
    for ours, theirs in zip(bare(q), kinematics(q), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_poses_are_reached_within_the_limits_and_without_leaps(kinematics):
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(40):
        start = np.clip(HOME + rng.normal(size=7) * 0.3, LOWER, UPPER)
        at, rotation, _ = kinematics(start)
        positions = at + np.cumsum(rng.uniform(-0.015, 0.015, (8, 3)), axis=0)
        rotations = [rotation := rotation_matrix(rng.uniform(-0.05, 0.05, 3)) @ rotation for _ in range(8)]
        try:
            found = follow(kinematics, positions, np.array(rotations), start, LOWER, UPPER)
        except ValueError:
            continue
        reached += 1
        assert ((found >= LOWER) & (found <= UPPER)).all()
        assert np.abs(np.diff(np.vstack([start, found]), axis=0)).max() < 0.3
        for q, position, turned in zip(found, positions, rotations, strict=True):
            there, now, _ = kinematics(q)
            assert np.linalg.norm(there - position) < 1e-3
            assert np.linalg.norm(rotation_vector(now @ turned.T)) < 5e-3
    assert reached >= 38


def test_what_is_out_of_reach_is_refused_with_what_is_left(kinematics):
    at, rotation, _ = kinematics(HOME)
    far = np.array([at, [1.5, 0.0, 0.4]])
    with pytest.raises(ValueError, match=r'step 1 asks for the tool at \[1.5, 0.0, 0.4\] m.* mm and .* degrees'):
        follow(kinematics, far, np.array([rotation, rotation]), HOME, LOWER, UPPER)


# ---- chunks


class Model:
    """Says what it is told to say."""

    def __init__(self, space, actions, gripper=True, size=6, state=8):
        self.said = np.asarray(actions, float)
        wide = size + gripper
        self.info = PolicyInfo(
            'ee', True, ('front',), 7, len(self.said), 0.05, gripper, action_space=space, state_dim=state,
            action_dim=wide, takes_prefix=True,
        )  # fmt: skip

    def act(self, observation, prefix=None):
        self.seen, said, size = observation, self.said.copy(), self.info.arm_dim
        self.given = None if prefix is None else prefix_steps(self.info, prefix)
        d = 0 if prefix is None else len(self.given)
        if d:
            said[:d] = self.given
        confidence = np.full(len(said), 0.5)
        return Prediction(Chunk(said[:, :size], said[:, size], 0.05, d, confidence, TOOL))


def seen(q=HOME, opening=0.04):
    return Observation(0, {}, np.asarray(q), np.zeros(7), opening, 'go')


def test_deltas_go_from_pose_to_pose(kinematics):
    deltas = np.tile([0.01, 0.0, -0.005, 0.0, 0.0, 0.02, 0.03], (8, 1))
    model = Model('ee_delta', deltas)
    chunk = EndEffectorPolicy(model, kinematics, PROFILE).act(seen()).chunk
    np.testing.assert_allclose([*model.seen.positions, model.seen.gripper], [*HOME, 0.04])
    at, rotation, _ = kinematics(HOME)
    for i, q in enumerate(chunk.positions):
        there, turned, _ = kinematics(q)
        np.testing.assert_allclose(there - at, (i + 1) * deltas[0, :3], atol=1e-4)
        np.testing.assert_allclose(rotation_vector(turned @ rotation.T), (i + 1) * deltas[0, 3:6], atol=1e-3)
    assert (chunk.gripper == 0.03).all()
    assert (chunk.dt, chunk.frozen, chunk.space) == (0.05, 0, 'joints')
    np.testing.assert_allclose(chunk.confidence, 0.5)


def test_inputs_of_liberos_controller_are_no_displacements(kinematics):
    """Shares of a constant input that the tool covers, step by step: of the law, and measured in LIBERO within 0.02."""
    said = np.tile([0.0, 0.02, 0.0, 0.0, 0.0, 0.1, 0.03], (8, 1))
    chunk = EndEffectorPolicy(Model('osc_delta', said), kinematics, PROFILE).act(seen()).chunk
    at, rotation, _ = kinematics(HOME)
    poses = [kinematics(q)[:2] for q in chunk.positions]
    ways = np.diff([at[1], *(there[1] for there, _ in poses)]) / 0.02
    x, v, integrated = 0.0, 0.0, []
    for _ in said:
        goal, before = x + 1.0, x
        for _ in range(5000):  # stiffness 150, damping 2 sqrt(150), by small steps
            v += (150 * (goal - x) - 2 * np.sqrt(150) * v) * 1e-5
            x += v * 1e-5
        integrated.append(x - before)
    np.testing.assert_allclose(ways, integrated, atol=1e-3)
    np.testing.assert_allclose(ways[:5], [0.125, 0.22, 0.244, 0.253, 0.259], atol=0.02)
    assert ways[-1] == pytest.approx(0.2655, abs=1e-3)
    turned = rotation_vector(poses[-1][1] @ rotation.T)[2] / 0.1
    assert turned == pytest.approx(ways.sum(), abs=2e-3)


def test_an_arm_in_motion_coasts_when_the_inputs_end(kinematics):
    policy = EndEffectorPolicy(Model('osc_delta', np.zeros((8, 7))), kinematics, PROFILE)
    moving = replace(seen(), velocities=np.array([0.2, 0, 0, 0, 0, 0, 0]))
    chunk = policy.act(moving).chunk
    at, _, jacobian = kinematics(HOME)
    ways = np.diff([at[1], *(kinematics(q)[0][1] for q in chunk.positions)])
    assert ways[0] == pytest.approx(jacobian[1, 0] * 0.2 * 0.05 * 0.542, rel=0.01)
    assert (ways > -1e-5).all()
    assert ways[-1] < 0.1 * ways[0]


def test_relative_poses_all_count_from_the_observation(kinematics):
    said = np.linspace(0, 1, 8)[:, None] * [0.08, 0.02, -0.04, 0.0, 0.1, 0.2, 0.0]
    chunk = EndEffectorPolicy(Model('ee_relative', said), kinematics, PROFILE).act(seen()).chunk
    at, rotation, _ = kinematics(HOME)
    for q, action in zip(chunk.positions, said, strict=True):
        there, turned, _ = kinematics(q)
        np.testing.assert_allclose(there - at, action[:3], atol=1e-4)
        np.testing.assert_allclose(rotation_vector(turned @ rotation.T), action[3:6], atol=1e-3)


def test_poses_out_of_the_workspace_are_moved_onto_its_sides(kinematics):
    at, _, _ = kinematics(HOME)
    low, high = at - np.array([1.0, 1.0, 0.05]), at + np.array([0.03, 1.0, 1.0])
    said = np.linspace(0, 1, 8)[:, None] * [0.08, 0.02, -0.1, 0.0, 0.0, 0.2, 0.0]
    profile = replace(PROFILE, workspace=np.concatenate([low, high]))
    chunk = EndEffectorPolicy(Model('ee_relative', said), kinematics, profile).act(seen()).chunk
    for q, action in zip(chunk.positions, said, strict=True):
        wanted = np.clip(at + action[:3], low + 0.003, high - 0.003)
        np.testing.assert_allclose(kinematics(q)[0], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ('space', 'size'), [('ee_relative', 6), ('ee_delta', 6), ('osc_delta', 6), ('ee_position', 6), ('ee_position', 7)]
)
def test_steps_under_way_go_to_the_model_as_its_own_actions(kinematics, space, size):
    rng = np.random.default_rng(1)
    path = HOME + np.cumsum(rng.uniform(-0.02, 0.02, (8, 7)), axis=0)
    prefix = Chunk(path[:3], np.array([0.01, 0.02, 0.03]), 0.05)
    model = Model(space, np.zeros((8, size + 1)), size=size)
    policy = EndEffectorPolicy(model, kinematics, PROFILE)
    # The model continues the motion: asked for all its steps as actions, it must lead to the same places.
    model.said = to_actions(kinematics, model.info, HOME, np.column_stack([path, np.full(8, 0.02)]))
    chunk = policy.act(seen(), prefix).chunk
    np.testing.assert_allclose(model.given, np.column_stack([model.said[:3, :-1], prefix.gripper]))
    assert chunk.frozen == 3
    np.testing.assert_allclose(chunk.positions[:3], prefix.positions)
    np.testing.assert_allclose(chunk.gripper, [0.01, 0.02, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02])
    for q, wanted in zip(chunk.positions, path, strict=True):
        np.testing.assert_allclose(kinematics(q)[0], kinematics(wanted)[0], atol=1e-4)
        np.testing.assert_allclose(kinematics(q)[1], kinematics(wanted)[1], atol=1e-3)


def test_a_chunk_for_the_world_model_goes_to_it_as_its_own_actions(kinematics):
    model = Model('osc_delta', np.tile([0.0, 0.02, 0.0, 0.0, 0.0, 0.1, 0.03], (8, 1)))
    given = []
    model.start = lambda output, observation, options: given.append(options)
    policy = EndEffectorPolicy(model, kinematics, PROFILE)
    policy.start(WORLD, seen(), WorldOptions(policy.act(seen()).chunk, after=3))
    assert (given[0].after, given[0].chunk.space) == (3, TOOL)
    np.testing.assert_allclose(given[0].chunk.positions, model.said[:, :6], atol=2e-3)
    np.testing.assert_allclose(given[0].chunk.gripper, 0.03)


def test_models_that_are_not_for_an_arm_alone(kinematics):
    with pytest.raises(ValueError, match='8 numbers per ee_position'):
        EndEffectorPolicy(Model('ee_position', np.zeros((2, 9)), size=8), kinematics, PROFILE)
    with pytest.raises(ValueError, match='7 numbers per ee_delta'):
        EndEffectorPolicy(Model('ee_delta', np.zeros((2, 8)), size=7), kinematics, PROFILE)
    with pytest.raises(ValueError, match='a state of 9 numbers'):
        EndEffectorPolicy(Model('ee_delta', np.zeros((2, 7)), state=9), kinematics, PROFILE)
    with pytest.raises(ValueError, match='almost zero'):
        EndEffectorPolicy(Model('ee_position', np.zeros((2, 8)), size=7), kinematics, PROFILE).act(seen())
