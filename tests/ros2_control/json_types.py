"""Service types that travel as rcl_interfaces/srv/GetParameters: the fields as JSON, in its texts.

Message packages of which there are no wheels are played with these. Both sides must use them: they do not talk to the
real packages. What they show is the order and the time of messages, not their layout.
"""

import json
from types import SimpleNamespace

from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters

_Request, _Response = GetParameters.Request, GetParameters.Response


def _plain(value):
    if hasattr(value, 'get_fields_and_field_types'):  # a message
        return {field: _plain(getattr(value, field)) for field in value.get_fields_and_field_types()}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _seen(value):
    if isinstance(value, dict):
        return SimpleNamespace(**{k: _seen(v) for k, v in value.items()})
    return [_seen(v) for v in value] if isinstance(value, list) else value


def service_type(fields, answers, **constants):
    """A service type. fields: of the request, with their defaults. answers: names of the fields of the response."""

    def make(self, **given):
        assert set(given) <= set(fields), f'{sorted(given)}: this request has the fields {sorted(fields)}'
        _Request.__init__(self, names=[json.dumps(_plain({**fields, **given}))])

    request = type(_Request)(_Request.__name__, (_Request,), {'__init__': make, '__module__': _Request.__module__})
    for name, value in constants.items():
        setattr(request, name, value)
    for name in answers:
        setattr(_Response, name, property(lambda response, name=name: getattr(answer_of(response), name)))
    return type(GetParameters)('Service', (), {'Request': request, 'Response': _Response})


def fields_of(request):
    """What a client asked, as a namespace."""
    return _seen(json.loads(request.names[0]))


def answer_of(response):
    """What a server answered, as a namespace."""
    return _seen(json.loads(response.values[0].string_value))


def answer(response, **fields):
    """Put fields into a response."""
    text = json.dumps(_plain(fields))
    response.values = [ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)]
    return response
