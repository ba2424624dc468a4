"""The description that a server of ours sends in its metadata: which policy it serves, and the mapping of its keys."""

from dataclasses import fields
from typing import Any

from vla_model.policy import POINTS, PolicyInfo
from vla_model.remote.mapping import Mapping, parse_mapping
from vla_model.types import Observation

FIELD, VERSION = 'vla', 1
# Keys of a request.
IMAGE, POSITIONS, VELOCITIES, GRIPPER, TOOL, PROMPT = (
    'observation/images/{}', 'observation/joint_position', 'observation/joint_velocity',
    'observation/gripper_position', 'observation/tool_pose', 'prompt',
)  # fmt: skip
# What a client takes over of the info; the mapping has the rest.
_INFO = ('model_id', 'trained', 'name', 'points', 'point_bins', 'takes_prefix', 'learned_prefix', 'picture_size')


def metadata_of(info: PolicyInfo, example: Observation) -> dict[str, Any]:
    """Return the metadata of a server of this policy. example: gives the pose of the first request."""
    numbers = info.arm_dim + info.gripper
    form = 'quaternion_wxyz' if not info.joints and info.arm_dim == 7 else 'rotation_vector'
    mapping: dict[str, Any] = {
        'name': info.name or info.model_id,
        'dt': info.dt,
        'steps': info.horizon,
        'prompt': PROMPT,
        'joints': {'count': info.dof, 'rest': [float(q) for q in example.positions]},
        'gripper': {} if info.gripper else None,
        'cameras': [{'camera': camera, 'key': IMAGE.format(camera)} for camera in info.cameras],
        'state': [
            {'key': key, 'parts': parts, 'dtype': 'float64'}
            for key, parts, wanted in (
                (POSITIONS, [{'part': 'joints'}], True),
                (VELOCITIES, [{'part': 'velocities'}], True),
                (GRIPPER, [{'part': 'gripper'}], info.gripper),
                (TOOL, [{'part': 'tool_position'}, {'part': 'tool_rotation'}], info.needs_tool),
            )
            if wanted
        ],
        'actions': {
            # Chunks of joints are absolute, however the network counts them.
            'space': 'joint_position' if info.joints else info.action_space,
            'width': numbers,
            'form': form,
            'gripper': {'column': info.arm_dim} if info.gripper else None,
        },
    }
    of_info = {f.name: getattr(info, f.name) for f in fields(info) if f.name in _INFO}
    return {FIELD: {'version': VERSION, 'info': of_info, 'mapping': mapping}}


def described(metadata: dict[str, Any], url: str) -> tuple[Mapping, dict[str, Any]] | None:
    """Return the mapping in metadata, and the values of PolicyInfo; None where the server is not one of ours.

    Raises ValueError where they are of another version or malformed.
    """
    content = metadata.get(FIELD)
    if content is None:
        return None
    if not isinstance(content, dict) or content.get('version') != VERSION:
        raise ValueError(f'{url} serves another version of this suite: update the older of the two')
    mapping = parse_mapping(content.get('mapping'), f'the metadata of {url}')
    info, types = content.get('info'), {f.name: f.type for f in fields(PolicyInfo)}
    if not isinstance(info, dict) or any(type(info.get(n)) is not types[n] for n in _INFO):
        raise ValueError(f'the metadata of {url}: info needs {", ".join(_INFO)}')
    return mapping, {name: info[name] for name in _INFO}


def info_of(mapping: Mapping, model_id: str, extra: dict[str, Any]) -> PolicyInfo:
    """Return the info of a served policy. extra: what a server of ours told of it; empty for another one."""
    actions, gripper = mapping.actions, mapping.gripper
    numbers = mapping.joints.count if actions.joints else 7 if actions.form == 'quaternion_wxyz' else 6
    values: dict[str, Any] = {'model_id': model_id, 'trained': True, 'name': mapping.name} | extra
    return PolicyInfo(
        cameras=mapping.camera_names,
        dof=mapping.joints.count,
        joint_names=mapping.joints.names,
        horizon=mapping.steps,
        dt=mapping.dt,
        gripper=gripper is not None,
        gripper_opening=gripper.open or 0.0 if gripper is not None else 0.0,
        action_space=actions.space,
        action_dim=numbers + (gripper is not None),
        outputs=frozenset({POINTS} if extra.get('points') else ()),
        needs_tool=mapping.needs_tool,
        **values,
    )


def misfits(mapping: Mapping, metadata: dict[str, Any]) -> list[str]:
    """Return what in the metadata of a server contradicts a mapping, a sentence each.

    Servers of other suites may send `input_features` (key -> shape), `chunk_size` and `fps`; what is missing is not
    compared.
    """
    found = []
    ours = metadata.get(FIELD)
    if isinstance(ours, dict) and isinstance(ours.get('mapping'), dict):
        found += _against(mapping, parse_mapping(ours['mapping'], 'the metadata'))
    features = metadata.get('input_features')
    if isinstance(features, dict):
        sent = {*(c.key for c in mapping.cameras), *(s.key for s in mapping.state)}
        found += [f'the server needs {key!r}, which the mapping does not send' for key in features if key not in sent]
        for how in mapping.cameras:
            shape = _shape(features.get(how.key)) if isinstance(how.key, str) else None
            wanted = how.size and ((3, *how.size), (*how.size, 3))
            if shape and wanted and shape not in wanted:
                found.append(f'{how.key!r} is of shape {shape} at the server, of size {list(how.size or ())} here')
    steps = metadata.get('chunk_size')
    if isinstance(steps, int) and steps < mapping.steps:
        found.append(f'the server sends {steps} steps, the mapping uses {mapping.steps}')
    fps = metadata.get('fps')
    if isinstance(fps, int | float) and fps > 0 and abs(1 / fps - mapping.dt) > 0.02 * mapping.dt:
        found.append(f'the server was trained at {fps:g} steps per second, dt is {mapping.dt:g} s')
    return found


def _against(mapping: Mapping, served: Mapping) -> list[str]:
    """Return the differences to the mapping that a server of ours sent."""
    pairs = (
        ('joints', mapping.joints.count, served.joints.count),
        ('gripper', mapping.gripper is not None, served.gripper is not None),
        ('actions.space', mapping.actions.space, served.actions.space),
        ('dt', mapping.dt, served.dt),
        ('prompt', mapping.prompt, served.prompt),
    )
    found = [
        f'{name} is {here} in the mapping and {there} at the server' for name, here, there in pairs if here != there
    ]
    keys = {s.key for s in mapping.state} | {c.key for c in mapping.cameras}
    needed = {s.key for s in served.state if s.key != VELOCITIES} | {c.key for c in served.cameras}
    found += [f'the server needs {key!r}, which the mapping does not send' for key in sorted(map(str, needed - keys))]
    if served.steps < mapping.steps:
        found.append(f'the server sends {served.steps} steps, the mapping uses {mapping.steps}')
    return found


def _shape(feature: Any) -> tuple[int, ...] | None:
    shape = feature.get('shape') if isinstance(feature, dict) else feature
    return tuple(shape) if isinstance(shape, list | tuple) and all(isinstance(n, int) for n in shape) else None
