"""Imports MuJoCo without OpenGL, so that programs without images run on machines without OpenGL.

By itself MuJoCo loads the platform of MUJOCO_GL at its import, which fails where that platform is missing.
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
    """Return a renderer of square images of `size` [pixel], on the platform of MUJOCO_GL at the first call.

    Raises ValueError with the remedy where OpenGL does not work.
    """
    try:
        if not hasattr(_platform, 'GLContext'):
            importlib.reload(_platform)
        return mujoco.Renderer(model, size, size)
    except Exception as error:  # PyOpenGL raises various errors for a missing library
        name = os.environ.get('MUJOCO_GL', '(not set)')
        raise ValueError(f'MuJoCo cannot draw with MUJOCO_GL={name}: {error}. {REMEDY}') from error
