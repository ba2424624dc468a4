"""Documentation: commands that exist and that tests run, links that lead somewhere, generated pages that are current.

`./vla test` and `./vla shell` are the environment that this test itself runs in.
"""

import re

import pytest

from vla_bringup import reference
from vla_policy_node.adapters.table import ADAPTERS

from .conftest import ROOT
from .documented import COVERED, NEEDS, SCRIPT, blocks, check_line, command_of, pages

ids = {'ids': lambda p: str(p.relative_to(ROOT))}


@pytest.mark.parametrize('page', pages(), **ids)
def test_every_command_exists_with_its_options_and_files(page):
    wrong = [f'{line}\n    {said}' for block in blocks(page) for line in block.lines if (said := check_line(line))]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('page', pages(), **ids)
def test_every_command_is_run_by_a_test_or_reports_what_it_needs(page):
    open_ends = []
    for block in blocks(page):
        for line in block.lines if not block.needs else ():
            if line.startswith('ros2 '):
                open_ends.append(f'{line}: put <!-- needs: ros --> before the block')
            elif (command := command_of(line)) and command not in COVERED:
                open_ends.append(f'{line}: name its test in COVERED, or what it needs (one of {sorted(NEEDS)})')
    assert not open_ends, '\n'.join(open_ends)


@pytest.mark.parametrize(('command', 'test'), COVERED.items())
def test_the_test_that_runs_a_command_knows_it(command, test):
    word = re.split(r'[ .]', command)[-1]
    assert command in SCRIPT or word in (ROOT / test).read_text()


@pytest.mark.parametrize('page', pages(), **ids)
def test_commands_in_the_text_exist(page):
    """In tables and sentences they may be cut short or have words in capitals: words and options must be there."""
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    wrong = []
    for line in re.findall(r'`(\./vla [^`]+)`', text):
        words = re.sub(r'\[.*?\]|\.\.\.|[A-Z]{3,}|…', '', line).split()[1:]
        said = check_line(' '.join(['./vla', *words]))
        # An argument that is left out is no mistake here, a word that does not exist is one.
        if said and not said.startswith(('Missing ', 'a command is missing')) and 'requires' not in said:
            wrong.append(f'{line}: {said}')
    assert not wrong, '\n'.join(wrong)


def test_the_page_of_interfaces_has_a_row_for_each_controller():
    page = (ROOT / 'docs/reference/interfaces.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \| (\w+/\w+) \|', page.split('| `controller` |')[1].split('\n\n')[0], re.M)
    assert dict(rows) == {name: adapter.message.replace('/msg', '') for name, adapter in ADAPTERS.items()}


def anchors(page):
    """As GitHub makes them from headings."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', page.read_text(), flags=re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', pages(), **ids)
def test_links_lead_to_pages_and_headings(page):
    broken = []
    for target, anchor in re.findall(r'\]\(([^)#\s]*)#?([^)\s]*)\)', page.read_text()):
        if '://' in target:
            continue
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f'{target}#{anchor}')
    assert not broken


def test_the_index_has_every_page():
    text = (ROOT / 'docs' / 'README.md').read_text()
    linked = set(re.findall(r'\]\(([^)#]+\.md)\)', text))
    assert linked == {str(p.relative_to(ROOT / 'docs')) for p in (ROOT / 'docs').glob('*/*.md')}


@pytest.mark.parametrize('name', ['messages.md', 'codes.md', 'robot-profile.md'])
def test_generated_pages_are_those_of_today(name):
    written = (ROOT / 'docs' / 'reference' / name).read_text()
    assert written == reference.pages(ROOT)[name], 'run ./vla reference'


def test_an_interface_file_is_read_whole():
    parts = reference.parse(
        '# What.\nuint8 A=1  # first\nuint8 a\nfloat64[7] b   # [rad] | per joint\n---\n---\nstring<=9 c\n'
    )
    assert (parts[0].about, parts[0].constants) == ('What.', [('A', '1', 'first')])
    assert parts[0].fields == [('a', 'uint8', ''), ('b', 'float64[7]', '[rad] | per joint')]
    assert (parts[1].fields, parts[2].fields) == ([], [('c', 'string<=9', '')])
    with pytest.raises(ValueError, match='neither field nor constant'):
        reference.parse('uint8')


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('./vla demo --tasks fill_bowl', ''),
        ('./vla demo --task fill_bowl', 'No such option'),
        ('./vla train fit RECIPE --tokens T --out O', ''),
        ('./vla dance', 'has no dance'),
        ('ros2 launch vla_bringup policy.launch.py drive:=maybe', 'drive must be one of'),
        ('ros2 launch vla_bringup policy.launch.py speed:=1', 'no argument speed'),
        ('ros2 run vla_sim sim_node', ''),
        ('ros2 run vla_sim dance_node', 'no executable'),
        ('ros2 service call /executor/stop std_srvs/srv/Trigger', ''),
        ('cp src/nowhere.yaml x', 'does not exist'),
        ('cd x && ./vla dance', 'has no dance'),
        ('rm -rf /', 'neither ours'),
    ],
)
def test_the_check_itself(line, said):
    found = check_line(line)
    assert said in found if said else found == ''
