"""Names of the nodes behind publishers and subscriptions, as discovery gives them."""

from typing import Any

UNKNOWN = 'UNKNOWN'  # in the names that rmw gives to nodes whose names have not come yet


def full_name(endpoint: Any) -> str:
    """Of the node that an endpoint belongs to."""
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'


def name_or(endpoint: Any, otherwise: str) -> str:
    """The full name of its node, or `otherwise` while that is not known."""
    return otherwise if UNKNOWN in endpoint.node_name else full_name(endpoint)
