"""Triangle meshes: reads COLLADA and binary STL, simplifies meshes, and makes surfaces of revolution and tubes."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_NS = {'c': 'http://www.collada.org/2005/11/COLLADASchema'}
_GREY = (0.8, 0.8, 0.8, 1.0)


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh of one colour."""

    vertices: np.ndarray  # (n, 3) [m]
    faces: np.ndarray  # (m, 3) int32 indices into vertices
    rgba: tuple[float, ...] = _GREY  # 0..1


def read_collada(path: Path) -> list[Mesh]:
    """Read a COLLADA file of <triangles>; return a mesh per colour, with node transforms applied."""
    root = ET.parse(path).getroot()
    colour_of_material = _materials(root)
    transforms: dict[str, np.ndarray] = {}
    for node in root.iterfind('.//c:visual_scene//c:node', _NS):
        matrix = node.find('c:matrix', _NS)
        transform = np.eye(4) if matrix is None else _numbers(matrix).reshape(4, 4)
        for instance in node.findall('c:instance_geometry', _NS):
            transforms[instance.get('url', '')[1:]] = transform
    parts: dict[tuple[float, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for geometry in root.iterfind('.//c:library_geometries/c:geometry', _NS):
        transform = transforms.get(geometry.get('id', ''), np.eye(4))
        for triangles in geometry.findall('c:mesh/c:triangles', _NS):
            vertices, faces = _triangles(geometry, triangles)
            colour = colour_of_material.get(triangles.get('material', ''), _GREY)
            parts.setdefault(colour, []).append((vertices @ transform[:3, :3].T + transform[:3, 3], faces))
    return [_merge(pieces, colour) for colour, pieces in parts.items()]


def _numbers(element: ET.Element | None, dtype: type = float) -> np.ndarray:
    return np.array((element.text or '').split() if element is not None else [], dtype)


def _materials(root: ET.Element) -> dict[str, tuple[float, ...]]:
    effects: dict[str, tuple[float, ...]] = {}
    for effect in root.iterfind('.//c:library_effects/c:effect', _NS):
        diffuse = effect.find('.//c:diffuse/c:color', _NS)
        if diffuse is not None:
            effects[effect.get('id', '')] = tuple(np.round(_numbers(diffuse), 2).tolist())
    colours: dict[str, tuple[float, ...]] = {}
    for material in root.iterfind('.//c:library_materials/c:material', _NS):
        instance = material.find('c:instance_effect', _NS)
        url = instance.get('url', '') if instance is not None else ''
        colours[material.get('id', '')] = effects.get(url[1:], _GREY)
    return colours


def _triangles(geometry: ET.Element, triangles: ET.Element) -> tuple[np.ndarray, np.ndarray]:
    inputs = triangles.findall('c:input', _NS)
    stride = 1 + max(int(i.get('offset', 0)) for i in inputs)
    vertex = next(i for i in inputs if i.get('semantic') == 'VERTEX')
    index = _numbers(triangles.find('c:p', _NS), int).reshape(-1, stride)[:, int(vertex.get('offset', 0))]
    group = geometry.find(f"c:mesh/c:vertices[@id='{vertex.get('source', '')[1:]}']/c:input[@semantic='POSITION']", _NS)
    assert group is not None
    source = geometry.find(f"c:mesh/c:source[@id='{group.get('source', '')[1:]}']/c:float_array", _NS)
    used, faces = np.unique(index, return_inverse=True)
    return _numbers(source).reshape(-1, 3)[used], faces.reshape(-1, 3)


def _merge(pieces: list[tuple[np.ndarray, np.ndarray]], colour: tuple[float, ...]) -> Mesh:
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in pieces[:-1]])
    faces = np.vstack([f + offset for (_, f), offset in zip(pieces, offsets, strict=True)])
    return Mesh(np.vstack([vertices for vertices, _ in pieces]), faces.astype(np.int32), colour)


def read_stl(path: Path) -> Mesh:
    """Read a binary STL file; equal corners become one vertex."""
    raw = path.read_bytes()
    record = np.dtype([('normal', '<3f4'), ('corners', '<9f4'), ('attribute', '<u2')])
    corners = np.frombuffer(raw, record, int.from_bytes(raw[80:84], 'little'), 84)['corners'].reshape(-1, 3)
    vertices, faces = np.unique(np.round(corners.astype(float), 6), axis=0, return_inverse=True)
    return Mesh(vertices, faces.reshape(-1, 3).astype(np.int32))


def thin_out(mesh: Mesh, cell: float) -> Mesh:
    """Simplify a mesh by vertex clustering: the vertices in a cube with edges of `cell` [m] become their mean."""
    _, cluster, counts = np.unique(
        np.floor(mesh.vertices / cell).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    cluster = cluster.ravel()
    vertices = np.stack([np.bincount(cluster, mesh.vertices[:, k]) for k in range(3)], 1) / counts[:, None]
    faces = cluster[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, 1), axis=0, return_index=True)
    return Mesh(vertices, faces[first].astype(np.int32), mesh.rgba)


def turned(profile: np.ndarray, segments: int = 24) -> Mesh:
    """Return a surface of revolution about z.

    profile: (n, 2) radius and height [m] of each ring, upwards on the outside, so that faces point outwards. Radii must
    be above zero. A disc closes each end, unless the two end rings coincide.
    """
    angle = np.arange(segments) * 2 * np.pi / segments
    rings = [np.stack([r * np.cos(angle), r * np.sin(angle), np.full(segments, z)], 1) for r, z in profile]
    faces = []
    for k in range(len(rings) - 1):
        for i in range(segments):
            j = (i + 1) % segments
            low, high = k * segments, (k + 1) * segments
            faces += [(low + i, low + j, high + j), (low + i, high + j, high + i)]
    last = (len(rings) - 1) * segments
    for i in range(1, segments - 1):
        faces += [(0, i + 1, i), (last, last + i, last + i + 1)]
    return Mesh(np.vstack(rings), np.array(faces, np.int32))


def swept(points: np.ndarray, radii: np.ndarray, segments: int = 16) -> Mesh:
    """Return a tube through points (n, 3) [m] in the xy plane with radii (n,) [m], closed at both ends."""
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    angle = np.arange(segments) * 2 * np.pi / segments
    rings = []
    for point, tangent, radius in zip(points, tangents, radii, strict=True):
        side = np.cross(up, tangent)
        rings.append(point + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * up))
    shell = turned(np.stack([np.ones(len(points)), np.arange(len(points))], 1), segments)
    return Mesh(np.vstack(rings), shell.faces)
