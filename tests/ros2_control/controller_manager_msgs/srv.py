"""Services."""

from json_types import service_type

ListControllers = service_type({}, ['controller'])
SwitchController = service_type(
    {
        'activate_controllers': [],
        'deactivate_controllers': [],
        'strictness': 0,
        'activate_asap': False,
        'timeout': {'sec': 0, 'nanosec': 0},
    },
    ['ok', 'message'],
    BEST_EFFORT=1,
    STRICT=2,
    AUTO=3,
    FORCE_AUTO=4,
)
SetHardwareComponentState = service_type({'name': '', 'target_state': {'id': 0, 'label': ''}}, ['ok', 'state'])
