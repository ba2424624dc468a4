"""MuJoCo without OpenGL, which whoever draws adds: what draws nothing runs where there is none.

MuJoCo itself loads the platform that MUJOCO_GL names when it is imported, and its import fails where that is not there.
"""

import importlib
import os
import sys

_asked = os.environ.get('MUJOCO_GL')
os.environ['MUJOCO_GL'] = 'disable'
import mujoco  # noqa: E402

if _asked is None:
    del os.environ['MUJOCO_GL']
else:
    os.environ['MUJOCO_GL'] = _asked

_platform = sys.modules[mujoco.Renderer.__module__].gl_context  # the module that takes its class from MUJOCO_GL
REMEDY = 'egl needs the libraries libegl1 libopengl0 libgl1-mesa-dri, osmesa needs libosmesa6, glfw needs a screen'


def renderer(model: mujoco.MjModel, size: int) -> mujoco.Renderer:
    """Returns one of square images of `size` pixels, on the platform that MUJOCO_GL named at the first call.

    Raises ValueError with the remedy where it cannot draw.
    """
    try:
        if not hasattr(_platform, 'GLContext'):
            importlib.reload(_platform)
        return mujoco.Renderer(model, size, size)
    except Exception as error:  # PyOpenGL raises whatever comes of a library that is not there
        name = os.environ.get('MUJOCO_GL', '(not set)')
        raise ValueError(f'MuJoCo cannot draw with MUJOCO_GL={name}: {error}. {REMEDY}') from error
