"""Messages of Python's logging in the log of a node."""

import logging

from rclpy.node import Node


class NodeHandler(logging.Handler):
    """Sends what a Python package logs, from INFO on, to the logger of a node until it is removed."""

    def __init__(self, node: Node, package: str) -> None:
        super().__init__(logging.INFO)
        self._log, self._package = node.get_logger(), logging.getLogger(package)
        self._package.addHandler(self)
        self._package.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._log.error(text)
        elif record.levelno >= logging.WARNING:
            self._log.warning(text)
        else:
            self._log.info(text)

    def remove(self) -> None:
        """Ends it; the node may be destroyed afterwards."""
        self._package.removeHandler(self)
