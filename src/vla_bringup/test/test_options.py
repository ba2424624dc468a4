"""What is called a robot, a model or a bag is found the same way by every command."""

import pytest
import typer
from typer.testing import CliRunner

from vla_bringup import cli
from vla_bringup.cli import app
from vla_bringup.processes.nodes import rviz_path
from vla_core.profile import RobotProfile, profile_path
from vla_model.checkpoints import shipped
from vla_model.loading import load

COMMAND = typer.main.get_command(app)


def commands(group=COMMAND, before=()):
    """(words, click command) of everything that ./vla runs."""
    for name, command in group.commands.items():
        if hasattr(command, 'commands'):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def having(option):
    return [' '.join(words) for words, command in commands() if any(option in p.opts for p in command.params)]


# What else a command needs before it looks at its robot.
NEEDED = {
    'replay': ('bag',),
    'record': ('--out', 'new'),
    'quantize': ('nano', '--calibration', 'nowhere'),
    'train convert': ('bag', '--out', 'new'),
    'train evaluate': ('random-nano',),
    'train ablate': ('recipe.yaml', '--no-fit'),
}


@pytest.mark.parametrize('words', having('--robot'))
def test_every_command_that_takes_a_robot_names_the_robots_there_are(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'recipe.yaml').write_text('{}')
    if words == 'doctor':
        from vla_bringup.doctor.robot import check_robot

        with pytest.raises(ValueError, match=r"'ur5'.*fr3, sim_panda"):
            list(check_robot('ur5'))
        return
    done = CliRunner().invoke(app, [*words.split(), *NEEDED.get(words, ()), '--robot', 'ur5'])
    assert done.exit_code == 1
    assert "no robot profile 'ur5': give a file, or one of fr3, sim_panda" in done.output


def test_without_the_package_of_the_benchmarks_bench_names_it_and_the_remedy(monkeypatch):
    monkeypatch.setattr(cli, 'BENCH', 'vla_bench_that_does_not_exist')
    on_robot = typer.Typer()
    on_robot.command('graph')(cli.graph)
    cli.add_bench(on_robot)
    for words in (['bench'], ['bench', 'model', '--size', 'nano'], ['bench', '--help']):
        done = CliRunner().invoke(on_robot, words)
        assert done.exit_code == 1
        (line,) = done.output.splitlines()
        assert line.startswith('package vla_bench_that_does_not_exist is not installed: build')


def test_a_robot_is_found_by_name_and_by_file_and_other_files_are_refused(tmp_path):
    assert RobotProfile.load('fr3').name == RobotProfile.load(profile_path('fr3')).name == 'fr3'
    for text, wrong in (('a: [', 'is not YAML'), ('a: 1', 'is no robot profile'), ('', 'is no robot profile')):
        (tmp_path / 'mine.yaml').write_text(text)
        with pytest.raises(ValueError, match=wrong):
            RobotProfile.load(tmp_path / 'mine.yaml')


def test_a_copied_profile_has_the_rviz_configuration_of_its_robot(tmp_path):
    (tmp_path / 'mine.yaml').write_text(open(profile_path('fr3')).read())  # noqa: PTH123, SIM115
    assert rviz_path(str(tmp_path / 'mine.yaml')) == rviz_path('fr3')


def test_a_model_is_a_folder_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.model_path('nano') == str(shipped.FOLDER)
    assert shipped.model_path('') == shipped.default_model()
    assert shipped.model_path('random-nano') == 'random-nano'
    assert shipped.model_path('some/folder') == 'some/folder'
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere.*'nano'.*'random-nano'"):
        load('nowhere')
    (tmp_path / 'nano').mkdir()  # the user's own folder comes first
    assert shipped.model_path('nano') == 'nano'


def test_real_time_factor_0_is_refused_when_a_model_drives(tmp_path):
    done = CliRunner().invoke(app, ['demo', '--real-time-factor', '0', '--out', str(tmp_path / 'out')])
    assert done.exit_code == 1 and not (tmp_path / 'out').exists()
    assert (
        'with --real-time-factor 0 the simulation does not wait: give --real-time-factor 1, or let the' in done.output
    )
