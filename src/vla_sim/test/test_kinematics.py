from pathlib import Path

import numpy as np
import pytest

from vla_core.kinematics.ik import rotation_vector
from vla_core.profile import RobotProfile
from vla_sim.assets.robot import robot_only_model
from vla_sim.kinematics import IKError, Kinematics, tool_down
from vla_sim.motion import JointPath, Limits, Waypoint, leg_duration, plan_path
from vla_sim.tasks import X_RANGE, Y_RANGE

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')


@pytest.fixture(scope='module')
def kinematics():
    return Kinematics(
        robot_only_model(),
        PROFILE.joint_names,
        PROFILE.tool_frame,
        lower=PROFILE.position_lower,
        upper=PROFILE.position_upper,
        home=PROFILE.home,
    )


def test_the_home_position_is_where_franka_documents_it(kinematics):
    position, rotation = kinematics.forward(PROFILE.home)
    assert position == pytest.approx([0.3069, 0.0, 0.4869], abs=2e-4)
    assert rotation == pytest.approx(tool_down(0.0), abs=1e-5)


def test_jacobian_is_the_derivative_of_forward(kinematics):
    q = PROFILE.home + np.linspace(-0.3, 0.3, 7)
    position, rotation = kinematics.forward(q)
    numeric = np.empty((6, 7))
    for joint in range(7):
        moved, turned = kinematics.forward(q + 1e-6 * np.eye(7)[joint])
        numeric[:3, joint] = (moved - position) / 1e-6
        numeric[3:, joint] = rotation_vector(turned @ rotation.T) / 1e-6
    assert kinematics(q)[2] == pytest.approx(numeric, abs=1e-5)


@pytest.mark.parametrize('offset', [-np.pi / 2, -0.7, 0.0, 0.7, np.pi / 2])
def test_every_pose_above_the_table_is_reached_within_the_limits(kinematics, offset):
    for x in np.linspace(*X_RANGE, 5):
        for y in np.linspace(*Y_RANGE, 7):
            for z in (0.005, 0.1, 0.25):
                yaw = np.arctan2(y, x) + offset
                q = kinematics.inverse(np.array([x, y, z]), tool_down(yaw), PROFILE.home)
                position, rotation = kinematics.forward(q)
                assert np.linalg.norm(position - [x, y, z]) < 1e-4
                assert np.linalg.norm(rotation_vector(tool_down(yaw) @ rotation.T)) < 2e-4
                assert (q > PROFILE.position_lower + 0.049).all() and (q < PROFILE.position_upper - 0.049).all()


def test_what_cannot_be_reached_is_an_error_that_reports_how_far_off(kinematics):
    with pytest.raises(IKError, match=r'cannot reach position \[1\.2, 0\.0, 0\.1\] m: \d+\.\d mm'):
        kinematics.inverse(np.array([1.2, 0.0, 0.1]), tool_down(0.0), PROFILE.home)


def test_a_profile_of_another_robot_is_refused():
    names = ('fr3_joint1', *PROFILE.joint_names[1:])
    with pytest.raises(ValueError, match='has no fr3_joint1: the robot profile'):
        Kinematics(robot_only_model(), names, 'panda_hand_tcp', lower=np.zeros(7), upper=np.ones(7), home=np.zeros(7))


def legs():
    rng = np.random.default_rng(1)
    for _ in range(12):
        spot = np.array([rng.uniform(*X_RANGE), rng.uniform(*Y_RANGE), 0.02])
        yaw = np.arctan2(spot[1], spot[0]) + rng.uniform(-np.pi / 2, np.pi / 2)
        yield PROFILE.home + rng.uniform(-0.03, 0.03, 7), spot, float(yaw)


def test_paths_are_smooth_within_limits_and_exact_at_both_ends(kinematics):
    for start, spot, yaw in legs():
        waypoints = [Waypoint(spot + np.array([0, 0, 0.1]), yaw), Waypoint(spot, yaw)]
        path = plan_path(kinematics, start, waypoints, velocity=PROFILE.velocity, acceleration=PROFILE.acceleration)
        dt = 0.004
        q = np.stack([path.at(t) for t in np.arange(-dt, path.duration + 2 * dt, dt)])
        speed = np.diff(q, axis=0) / dt
        acceleration = np.diff(speed, axis=0) / dt
        tool = np.stack([kinematics.forward(x)[0] for x in q])
        assert (np.abs(speed) <= 0.5 * PROFILE.velocity).all()
        assert (np.abs(acceleration) <= 0.6 * PROFILE.acceleration).all()
        assert np.linalg.norm(np.diff(tool, axis=0), axis=1).max() / dt <= 0.35
        assert q[0] == pytest.approx(start, abs=1e-12)
        assert np.linalg.norm(tool[-1] - spot) < 1e-4
        # The last centimetres go straight down.
        low = tool[:, 2] < spot[2] + 0.04
        assert np.linalg.norm(tool[low, :2] - spot[:2], axis=1).max() < 0.003


def test_a_short_leg_is_limited_by_acceleration_and_a_turn_by_its_own_speed():
    limits = Limits()
    assert leg_duration(1.0, 0.0, limits) == pytest.approx(1.875 / limits.speed)
    assert leg_duration(0.01, 0.0, limits) == pytest.approx(np.sqrt(5.774 * 0.01 / limits.acceleration))
    assert leg_duration(0.0, 3.0, limits) == pytest.approx(1.875 * 3.0 / limits.turn)


def test_a_path_that_begins_in_motion_keeps_its_speed():
    samples = np.array([[0.0], [0.09], [0.12]])
    path = JointPath(samples, 0.1, start_velocity=np.array([1.0]))
    assert (path.at(1e-4) - path.at(0.0)) / 1e-4 == pytest.approx(1.0, abs=0.01)
    assert path.at(5.0) == pytest.approx(0.12)
