"""Every way to run the image encoder gives the codes of float32 eager, or says why it does not run."""

import copy

import pytest
import torch

from vla_model.checkpoints import nano
from vla_model.config import ImageTokenizerConfig
from vla_model.engines import image as image_engine
from vla_model.engines.base import ImageEncoder
from vla_model.engines.image import LIMITS
from vla_model.families.mmact import loading
from vla_model.image_tokenizer import ImageTokenizer, ResBlock, to_image
from vla_model.loading import LoadOptions

pytestmark = pytest.mark.native
CONFIG = ImageTokenizerConfig(32, 8, 4, 8, (1, 1), (0, 0), (1, 1), (0, 0))


def can_run(name: str, dtype: str) -> bool:
    try:
        image_engine.check(name, 'cpu', dtype)
    except ValueError:
        return False
    if name != 'openvino' or dtype == 'float32':
        return True
    import openvino

    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


PATHS = [(n, d) for n, devices in image_engine.SUPPORTED.items() for d in devices.get('cpu', ()) if can_run(n, d)]
PATHS = [path for path in PATHS if path != ('compile', 'bfloat16')]  # as the other, and it takes seconds to compile


@pytest.fixture
def tokenizer():
    torch.set_num_threads(1)
    made = ImageTokenizer(CONFIG).eval()
    nano.init_weights(made, 0)
    return made


@pytest.mark.parametrize(('name', 'dtype'), PATHS)
def test_codes_are_those_of_float32_eager(tokenizer, name, dtype):
    made = image_engine.make(name, tokenizer, dtype)
    assert made.name == name and LIMITS[dtype] <= made.agreement <= 1
    pictures = torch.stack([image_engine.picture(32, 100 + i) for i in range(4)])
    with torch.inference_mode():
        exact = torch.cat([tokenizer.encode(p[None]) for p in pictures])
        ours = [made(p[None]) for p in pictures]
    assert ours[0].dtype == torch.int64
    assert (torch.cat(ours) == exact).float().mean() >= LIMITS[dtype]
    assert len(exact.unique()) > 8  # or agreement would say nothing
    assert next(tokenizer.parameters()).dtype == torch.float32


@pytest.mark.skipif(not can_run('openvino', 'int8'), reason='needs OpenVINO and a processor with bfloat16')
def test_wide_convolutions_are_in_int8_and_several_images_get_the_codes_of_each():
    torch.manual_seed(0)
    wide = ImageTokenizer(ImageTokenizerConfig(32, 64, 8, 8, (1, 1), (0, 1), (1, 1), (0, 0))).eval()
    nano.init_weights(wide, 0)
    made = image_engine.make('openvino', wide, 'int8')
    rounded = [n for n in made._graph.get_ops() if n.get_type_name() == 'FakeQuantize']
    blocks = [m for m in wide.encoder.modules() if isinstance(m, ResBlock)]
    assert len(rounded) == 4 * len(blocks) > 0  # input and weights of two convolutions
    exact = image_engine.make('openvino', wide, 'bfloat16')
    pictures = torch.stack([image_engine.picture(32, 50 + i) for i in range(3)])
    each = torch.cat([made(p[None]) for p in pictures])
    assert LIMITS['int8'] <= (each == torch.cat([exact(p[None]) for p in pictures])).float().mean() < 1
    assert made.together and torch.equal(made(pictures), each)
    assert (each == wide.encode(pictures)).float().mean() >= LIMITS['int8']


def test_auto_is_for_who_chooses(tokenizer):
    with pytest.raises(ValueError, match="'auto' stands for several"):
        image_engine.make('auto', tokenizer)
    with pytest.raises(ValueError, match="image_dtype on cpu must be 'auto' or one of"):
        image_engine.check('auto', 'cpu', 'float16')
    image_engine.check('eager', 'cpu', 'auto')


def test_auto_tries_the_usual_winners_first_and_never_what_takes_a_minute(monkeypatch):
    winners = (('openvino', 'bfloat16'), ('openvino', 'int8'))
    others = (('eager', 'bfloat16'), ('openvino', 'float32'))
    assert image_engine.auto_candidates('cpu', 'auto') == (winners, others)
    assert image_engine.auto_candidates('cpu', 'float32') == ((('openvino', 'float32'),), ())
    assert image_engine.auto_candidates('cuda', 'auto') == ((('eager', 'bfloat16'), ('eager', 'float16')), ())
    monkeypatch.setattr(image_engine.importlib.util, 'find_spec', lambda name: None)
    assert image_engine.auto_candidates('cpu', 'auto') == ((('eager', 'bfloat16'),), ())


def test_measured_times_are_of_every_encoder(tokenizer):
    times = image_engine.measure({'eager': ImageEncoder(tokenizer)}, image_engine.picture(32, 0)[None], rounds=1)
    assert times.keys() == {'eager'} and times['eager'] > 0


def test_one_that_computes_something_else_is_refused(tokenizer, monkeypatch):
    class Wrong(ImageEncoder):
        def __call__(self, pixels):
            return super().__call__(pixels.flip(1))  # BGR

    monkeypatch.setattr(image_engine, 'Compiled', Wrong)
    monkeypatch.setattr(image_engine.shutil, 'which', lambda name: '/bin/true')
    with pytest.raises(ValueError, match=r"'compile' in float32 gives .*% of the codes .* take image_engine 'eager'"):
        image_engine.make('compile', tokenizer)


def test_one_that_does_not_compile_reports_it(tokenizer, monkeypatch):
    class Broken(ImageEncoder):
        def __call__(self, pixels):
            raise RuntimeError('no Python.h\nand more')

    monkeypatch.setattr(image_engine, 'Compiled', Broken)
    monkeypatch.setattr(image_engine.shutil, 'which', lambda name: '/bin/true')
    with pytest.raises(ValueError, match=r'does not run here \(no Python.h\)'):
        image_engine.make('compile', tokenizer)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('warp', 'cpu', 'float32'), r"image_engine must be one of \['auto', 'eager', .*got 'warp'"),
        (('openvino', 'cuda', 'float32'), r"'openvino' runs on cpu, not on cuda: take one of \['eager', 'compile'\]"),
        (('openvino', 'cpu', 'float16'), r"image_dtype on cpu must be one of .* for image_engine 'openvino'"),
        (('eager', 'cpu', 'float16'), r"image_dtype on cpu must be one of .* got 'float16'"),
    ],
)
def test_unsupported_pairs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_engine.check(*arguments)


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(ValueError, match=r'needs a C\+\+ compiler, no-such-compiler is not there: install'):
        loading.load('random-nano', LoadOptions(image_engine='compile'))
    monkeypatch.setattr(image_engine.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install openvino'):
        image_engine.check('openvino', 'cpu', 'float32')
    monkeypatch.delenv('CXX')
    monkeypatch.setattr(image_engine.shutil, 'which', lambda name: '/bin/true')
    with pytest.raises(ValueError, match='pip install triton'):
        image_engine.check('compile', 'cuda', 'float16')


def test_the_policy_encodes_with_it(monkeypatch):
    pytest.importorskip('openvino')
    ours, plain = (loading.load('random-nano', LoadOptions(threads=1)) for _ in range(2))
    ours.use('eager', image_engine='openvino')
    assert ours.engine.encoder.name == 'openvino' and plain.engine.encoder.name == 'eager'

    def seen(seed):
        return to_image(image_engine.picture(plain.config.image_tokenizer.resolution, seed))

    picture = image_engine.picture(plain.config.image_tokenizer.resolution, 3)[None]
    with torch.inference_mode():
        assert (ours.engine.encode(picture) == plain.engine.encode(picture)).float().mean() >= LIMITS['float32']
        images = {camera: seen(i) for i, camera in enumerate(plain.config.robot.cameras)}
        calls = []
        monkeypatch.setattr(ours.engine, 'encode', lambda p: calls.append(len(p)) or ours.engine.encoder(p))
        both = ours.view_ids(images)
        assert (both == plain.view_ids(images)).float().mean() >= LIMITS['float32']
        images[plain.config.robot.cameras[1]] = seen(9)  # the other one is not encoded again
        other = ours.view_ids(images)
        assert calls == [len(images), 1] and torch.equal(other[0], both[0]) and not torch.equal(other[1], both[1])


def test_a_copy_in_half_precision_leaves_the_tokenizer_alone(tokenizer):
    before = copy.deepcopy(tokenizer.state_dict())
    half = image_engine.make('eager', tokenizer, 'bfloat16')
    assert half.encoder is not tokenizer.encoder and half.agreement < 1
    assert all(torch.equal(v, before[n]) for n, v in tokenizer.state_dict().items())
