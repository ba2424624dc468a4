"""Loads policies of servers by URL: ws://HOST:PORT?mapping=NAME_OR_FILE&deadline=SECONDS; act:// for `/act` servers.

mapping: needed for servers that do not describe themselves, see described.py. deadline: of a request; without it the
duration of a chunk, at least 0.5 s.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from vla_model.loading import PLAIN, LoadOptions
from vla_model.policy import PolicyInfo
from vla_model.remote.act import ActLink
from vla_model.remote.described import described, info_of, misfits
from vla_model.remote.mapping import Mapping, load_mapping, shipped
from vla_model.remote.numpy_msgpack import pack
from vla_model.remote.openpi import OpenpiLink
from vla_model.remote.policy import Link, RemotePolicy

LINKS: dict[str, Callable[[str], Link]] = {'ws': OpenpiLink, 'wss': OpenpiLink, 'act': ActLink}  # protocol by scheme
SHORTEST = 0.5  # [s] deadline of a request that is not given


@dataclass(frozen=True)
class Reference:
    """A parsed URL."""

    url: str  # without the query
    scheme: str
    mapping: str = ''
    deadline: float = 0.0  # [s]; 0: by the chunk


def parse(reference: str) -> Reference:
    """Return the parts of a URL. Raises ValueError naming the wrong one."""
    parts = urlsplit(reference)
    try:
        place = parts.hostname and (parts.port or True)
    except ValueError as error:
        raise ValueError(f'{reference}: {error}') from None
    if not place:
        raise ValueError(f'{reference} has no host: give {parts.scheme}://HOST:PORT')
    if parts.username is not None:
        raise ValueError('a URL must not have a key or a password, as it is written into logs: set VLA_SERVER_KEY')
    words = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(words.keys() - {'mapping', 'deadline'}):
        raise ValueError(f'{reference}: {unknown[0]!r} is not known after the ?, only mapping and deadline')
    try:
        deadline = float(words.get('deadline', 0))
    except ValueError:
        deadline = -1.0
    if not 0 <= deadline <= 600:
        raise ValueError(f'{reference}: deadline must be above 0 and up to 600 s, got {words["deadline"]!r}')
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, '', ''))
    return Reference(url, parts.scheme, words.get('mapping', ''), deadline)


def load(reference: str, options: LoadOptions = PLAIN) -> RemotePolicy:
    """Connect, and return the policy. Raises FileNotFoundError or ValueError naming the fault and the remedy."""
    _refuse(options)
    at = parse(str(reference))
    chosen = load_mapping(at.mapping) if at.mapping else None
    link = open_link(at)
    try:
        mapping, info, ours = _fitted(link, chosen)
    except ValueError:
        link.close()
        raise
    return RemotePolicy(link, mapping, info, at.deadline or max(SHORTEST, mapping.steps * mapping.dt), ours)


def describe(reference: str, options: LoadOptions = PLAIN) -> PolicyInfo:
    """Return the info of the policy of a server, which must run. Raises as `load`."""
    policy = load(reference, options)
    policy.close()
    return policy.info


def open_link(at: Reference) -> Link:
    """Return a connection. Raises ValueError naming why there is none."""
    try:
        return LINKS[at.scheme](at.url)
    except (OSError, RuntimeError) as error:
        raise ValueError(str(error)) from None


def _fitted(link: Link, chosen: Mapping | None) -> tuple[Mapping, PolicyInfo, bool]:
    """Return mapping, info and whether it is one of ours of a connected server.

    Raises ValueError where its metadata do not fit.
    """
    own = described(link.metadata, link.url)
    if chosen is None and own is None:
        raise ValueError(
            f'{link.url} does not describe its keys and numbers: give {link.url}?mapping=NAME, one of '
            f'{", ".join(shipped())}, or the file of a mapping'
        )
    mapping = chosen or own[0]  # type: ignore[index]
    if faults := misfits(mapping, link.metadata):
        raise ValueError(f'mapping {mapping.name} does not fit {link.url}: {"; ".join(faults)}')
    served = hashlib.sha256(pack(link.metadata) + mapping.model_dump_json().encode()).hexdigest()[:12]
    extra = own[1] if own else {}
    info = info_of(mapping, f'{mapping.name}@{link.url.partition("://")[2]}-{served}', extra)
    return mapping, info, own is not None


def _refuse(o: LoadOptions) -> None:
    """Raise ValueError for an option that only a model in this process has."""
    plain = LoadOptions()
    wrong = {
        'device': o.device != plain.device,
        'dtype': o.dtype != plain.dtype,
        'engine': o.engine not in ('eager', 'auto'),
        'act_steps': o.act_steps != plain.act_steps,
        'kv_reuse': o.kv_reuse != plain.kv_reuse,
        'image_tokenizer': o.image_tokenizer is not None,
        'action_decoding': o.action_decoding != plain.action_decoding,
        'action_head': o.action_head != plain.action_head,
    }
    if given := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f'{", ".join(given)} cannot be set for the policy of a server: give it to the server')
