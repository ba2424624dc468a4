"""Defines ./vla train: its commands are registered where they are written."""

from vla_training.commands import data, evaluation, training
from vla_training.commands.options import app

__all__ = ['app', 'data', 'evaluation', 'training']

if __name__ == '__main__':
    app(prog_name='vla_training.cli')
