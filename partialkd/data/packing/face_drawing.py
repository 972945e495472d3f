"""Draw one face: traits of the identity and of the picture in, an (H, W, 3) uint8 RGB picture out.

A drawing is a pure function of the traits (`face_traits.py`, coordinates there) and of the generator that draws
colours of things, background and noise. Nothing here is a photograph.

Source: own construction. Pose is parametric, not a rendering: a feature at depth z moves by z sin(yaw), z sin(pitch)
against the outline of the head, as on an ellipsoid, and narrows by the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFilter

from partialkd.data.packing.face_traits import Traits, identity_traits, nuisance_traits

Colour = tuple[int, ...]
Point = tuple[float, float]

SKINS = ((58, 38, 30), (110, 72, 52), (164, 116, 88), (206, 160, 130), (232, 194, 170))
HAIRS = ((22, 18, 18), (58, 38, 26), (104, 66, 36), (150, 62, 30), (196, 160, 98), (172, 170, 168))
IRISES = ((48, 30, 20), (98, 66, 34), (70, 100, 60), (70, 110, 150), (112, 122, 130))


def draw_jpegs(seed: int, size: int, keys: Sequence[tuple[int, int]]) -> list[bytes]:
    """Draw the pictures of (identity, image) keys as JPEG, each a function of (seed, identity, image, size) only."""
    encoded = []
    for identity, image in keys:
        rng = np.random.default_rng([seed, 2, identity, image])
        how = nuisance_traits(rng)
        pixels = draw_face(identity_traits(seed, identity), how, size, rng)
        encoded.append(simplejpeg.encode_jpeg(pixels, quality=int(how["quality"]), colorsubsampling="444"))
    return encoded


def draw_face(who: Traits, how: Traits, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a face (size, size, 3) uint8 RGB at two to four times the size and reduce it."""
    factor = max(2, min(4, 160 // size))
    canvas = Canvas(size * factor, who, how, rng)
    for layer in (_hair_behind, _ears, _head, _skin_marks, _nose, _mouth, _beard, _eyes, _hair, _brows, _accessories):
        layer(canvas)
    picture = canvas.picture
    if how["blur"] > 0.15:
        picture = picture.filter(ImageFilter.BoxBlur(how["blur"] * factor * size / 56))
    return _light(np.asarray(picture.reduce(factor), dtype=np.float32), how, rng)


class Canvas:
    """A picture to draw on in face coordinates; remembers the pose and the colours of one drawing."""

    def __init__(self, pixels: int, who: Traits, how: Traits, rng: np.random.Generator) -> None:
        self.who, self.how, self.rng = who, how, rng
        self.skin = _mix_many(SKINS, who["skin"], (14 * who["skin_warmth"], 0, -14 * who["skin_warmth"]))
        self.hair = _mix_many(HAIRS, who["hair_hue"])
        corners = rng.integers(10, 245, size=(2, 2, 3), dtype=np.uint8)
        self.picture = Image.fromarray(corners).resize((pixels, pixels), Image.Resampling.BILINEAR)
        self.pen = ImageDraw.Draw(self.picture, "RGBA")
        self.unit = 0.43 * pixels * how["scale"]  # pixels of one face unit
        self.middle = np.array([0.5 + how["shift_x"], 0.52 + how["shift_y"]]) * pixels
        self.turn = np.array([math.sin(how["yaw"]), math.sin(how["pitch"])])
        self.narrow = np.array([math.cos(how["yaw"]), math.cos(how["pitch"])])
        cos, sin = math.cos(how["roll"]), math.sin(how["roll"])
        self.spin = np.array([[cos, sin], [-sin, cos]]) * self.unit

    def place(self, points: np.ndarray, depth: float | None) -> list[tuple[float, float]]:
        """Bring (n, 2) face coordinates to pixels. depth None: on the surface of the head; 0: on its outline."""
        if depth is None:
            inside = 1.0 - (points[:, :1] / 0.95) ** 2 - (points[:, 1:] / 1.25) ** 2
            points = points * self.narrow + 0.62 * np.sqrt(np.maximum(inside, 0.0)) * self.turn
        elif depth:
            points = points * self.narrow + depth * self.turn
        return list(map(tuple, (points @ self.spin + self.middle).tolist()))

    def shape(self, points: np.ndarray, colour: Colour, depth: float | None = None) -> None:
        self.pen.polygon(self.place(points, depth), fill=colour)

    def line(self, points: np.ndarray, colour: Colour, width: float, depth: float | None = None) -> None:
        self.pen.line(self.place(points, depth), fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def oval(self, centre: Point, radii: Point, colour: Colour, tilt: float = 0.0, depth: float | None = None) -> None:
        ring = _CIRCLE * radii
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            ring = ring @ np.array([[cos, sin], [-sin, cos]])
        self.shape(np.add(ring, centre), colour, depth)


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * math.pi, 17)[:-1]), np.sin(np.linspace(0, 2 * math.pi, 17)[:-1])], axis=1)
_BOW = np.linspace(-1.0, 1.0, 9)  # parameter along a curve from left to right


def _head(canvas: Canvas) -> None:
    who = canvas.who
    neck = 0.62 * who["jaw"] * who["cheek"]
    cloth = tuple(canvas.rng.integers(20, 235, size=3).tolist())
    canvas.shape(_points(-neck, 0.5, neck, 0.5, neck, 1.3, -neck, 1.3), _shade(canvas.skin, 0.78), 0.0)
    canvas.shape(_points(-neck - 0.1, 1.12, neck + 0.1, 1.12, 1.4, 1.5, 1.4, 2.5, -1.4, 2.5, -1.4, 1.5), cloth, 0.0)
    canvas.shape(_outline(who), canvas.skin, 0.0)


def _outline(who: Traits) -> np.ndarray:
    """The head without hair, clockwise from the left temple."""
    cheek, jaw, chin, top = who["cheek"], who["cheek"] * who["jaw"], who["chin"], who["forehead"]
    skull = np.linspace(math.pi, 2 * math.pi, 13)
    upper = np.stack([cheek * np.cos(skull), top * np.sin(skull) - 0.05], axis=1)
    below, lower = 0.5 * (cheek + jaw) + 0.03, 0.5 * (jaw + who["chin_width"])
    right = _points(
        cheek, 0.2, below, 0.45, jaw, 0.64, lower, 0.9 * chin - 0.02, who["chin_width"], 0.985 * chin, 0.0, chin
    )
    return np.concatenate([upper, right, right[-2::-1] * (-1, 1)])


def _ears(canvas: Canvas) -> None:
    who = canvas.who
    for side in (-1, 1):
        centre = (side * (who["cheek"] + who["ear_out"]) - 0.12 * canvas.turn[0], who["ear_y"] + 0.05)
        radii = (0.08 + 0.3 * who["ear_out"], who["ear_size"])
        canvas.oval(centre, radii, _shade(canvas.skin, 0.88), depth=0.0)


def _skin_marks(canvas: Canvas) -> None:
    who, dark = canvas.who, _shade(canvas.skin, 0.72)
    for side in (-1, 1):
        canvas.oval((side * 0.42, 0.25), (0.2, 0.14), (200, 60, 60, int(120 * who["blush"])))
        if who["folds"] > 0.5:
            canvas.line(_points(side * 0.2, 0.2, side * 0.3, 0.36, side * 0.33, 0.5), dark, 0.025)
    if who["wrinkles"] > 0.6:
        for y in (-0.5, -0.42):
            canvas.line(_points(-0.3, y, 0.0, y - 0.03, 0.3, y), dark, 0.02)
    if who["freckles"] > 0.7:
        spots = np.random.default_rng(int(who["freckles"] * 1e6)).uniform((-0.5, 0.0), (0.5, 0.35), size=(9, 2))
        for x, y in spots:
            canvas.oval((x, y), (0.02, 0.02), _shade(canvas.skin, 0.66))
    if who["mole"] > 0.45:
        canvas.oval((who["mole_x"], who["mole_y"]), (0.04, 0.04), _shade(canvas.skin, 0.3))


def _nose(canvas: Canvas) -> None:
    who = canvas.who
    y, width, bridge = who["nose_y"], who["nose_width"], who["nose_bridge"]
    ridge = 0.62 + 0.14 * who["nose_tip"]  # the tip stands out of the face: it moves most when the head turns
    root, thin, slim = who["eye_y"], 0.6 * bridge, 0.4 * width
    shadow, middle, bright = (_shade(canvas.skin, factor) for factor in (0.74, 0.88, 1.1))
    canvas.shape(_points(-bridge, root, bridge, root, width, y, 0.0, y + 0.06, -width, y), middle, ridge)
    canvas.shape(_points(-thin, root, thin, root, slim, y, -slim, y), bright, ridge)
    canvas.oval((0.0, y - 0.02), (0.5 * width, 0.06 * who["nose_tip"] + 0.02), bright, 0.0, ridge)
    for side in (-1, 1):
        canvas.oval((side * 0.62 * width, y + 0.025), (0.3 * width + 0.01, 0.026), shadow, side * 0.3, ridge - 0.05)


def _mouth(canvas: Canvas) -> None:
    who, how = canvas.who, canvas.how
    y = who["nose_y"] + who["mouth_drop"] + 0.04
    width = who["mouth_width"] * (1 + 1.2 * max(how["smile"], 0.0))
    red = _mix(_shade(canvas.skin, 0.7), (186, 52, 62), who["lip_red"])
    x, hill = width * _BOW, 1 - _BOW**2
    lift = -(how["smile"] + who["mouth_curve"]) * _BOW**2
    opening = max(how["open"], 0.0) * hill
    bow = 1 - who["lip_bow"] * np.exp(-((_BOW / 0.22) ** 2))
    upper = np.stack([x, y + lift - opening * 0.4 - who["lip_upper"] * hill * bow], axis=1)
    lower = np.stack([x, y + lift + opening + who["lip_lower"] * hill], axis=1)
    canvas.shape(np.concatenate([upper, lower[::-1]]), red)
    seam_top, seam_low = np.stack([x, y + lift - opening * 0.4], axis=1), np.stack([x, y + lift + opening], axis=1)
    if how["open"] > 0.02:
        canvas.shape(np.concatenate([seam_top, seam_low[::-1]]), (60, 20, 22))
        canvas.shape(np.concatenate([seam_top, np.add(seam_top[::-1], (0, 0.4 * how["open"]))]), (228, 224, 214))
    else:
        canvas.line(seam_top, _shade(red, 0.55), 0.02)


def _beard(canvas: Canvas) -> None:
    who = canvas.who
    y = who["nose_y"] + who["mouth_drop"] + 0.04
    if who["beard"] > 0.6:
        outline = _outline(who)[14:25]  # the lower face, from jaw to jaw
        opacity = int(90 + 380 * (who["beard"] - 0.6))
        inner = _points(-0.36, y + 0.12, -0.42, y - 0.12, 0.42, y - 0.12, 0.36, y + 0.12)[::-1]
        rim = np.concatenate([outline, inner[2:], inner[:2]]) if who["beard"] > 0.8 else outline * (0.75, 1.0)
        canvas.pen.polygon(canvas.place(rim, 0.0), fill=(*_shade(canvas.hair, 0.9), opacity))
    if who["moustache"] > 0.7:
        middle = y - who["lip_upper"] - 0.05
        arc = _points(-0.2, middle + 0.04, 0.0, middle - 0.01, 0.2, middle + 0.04)
        canvas.line(arc, _shade(canvas.hair, 0.9), 0.06)


def _eyes(canvas: Canvas) -> None:
    who, how = canvas.who, canvas.how
    width = who["eye_width"]
    height = width * who["eye_height"] * how["eyes_open"]
    iris = _mix_many(IRISES, who["iris_hue"])
    lid = _shade(canvas.skin, 0.55 + 0.3 * who["lid"])
    for side in (-1, 1):
        x, y, tilt = side * who["eye_gap"], who["eye_y"], side * who["eye_tilt"]
        if who["bags"] > 0.5:
            canvas.oval((x, y + 0.09), (width, 0.05), _shade(canvas.skin, 0.8), tilt)
        canvas.oval((x, y - 0.02), (width * 1.12, height * 1.15 + 0.02), lid, tilt)
        canvas.oval((x, y), (width, height), (236, 234, 230), tilt)
        gaze = x + how["gaze"] * width
        radius = min(who["iris"] * 0.62 * width, height)
        canvas.oval((gaze, y), (who["iris"] * 0.62 * width, radius), iris)
        canvas.oval((gaze, y), (0.25 * width, min(0.25 * width, height)), (12, 10, 10))
        rim = np.stack([x + width * _BOW, y - height * (1 - _BOW**2) + math.tan(tilt) * width * _BOW], axis=1)
        canvas.line(rim, (30, 22, 20), 0.02 + 0.03 * who["lid"])


def _brows(canvas: Canvas) -> None:
    who, how = canvas.who, canvas.how
    colour = (*_mix(canvas.skin, _shade(canvas.hair, 0.6), who["brow_dark"]), 255)
    height = who["eye_y"] - who["brow_gap"] - how["brow_lift"]
    for side in (-1, 1):
        x = who["brow_length"] * _BOW[::2]
        y = side * who["brow_tilt"] * x - who["brow_arch"] * (1 - _BOW[::2] ** 2)
        canvas.line(np.stack([x + side * who["eye_gap"], y + height], axis=1), colour, who["brow_width"])


def _hair_behind(canvas: Canvas) -> None:
    who = canvas.who
    if who["bald"] > 0.88:
        return
    wide, low, colour = who["cheek"] + 0.5 * who["hair_volume"] + 0.05, who["hair_length"], _shade(canvas.hair, 0.8)
    canvas.oval((0.0, -0.2), (wide, who["forehead"] + who["hair_volume"] - 0.15), colour, depth=-0.15)
    if low > 0.0:
        canvas.shape(_points(-wide, -0.3, wide, -0.3, wide + 0.1, low, -wide - 0.1, low), colour, -0.15)


def _hair(canvas: Canvas) -> None:
    """The cap of hair over the forehead: outer edge with volume and curls, inner edge with parting and fringe."""
    who, how = canvas.who, canvas.how
    if who["bald"] > 0.88:
        return
    angle = np.linspace(math.pi * 1.02, math.pi * 1.98, 19)
    curls = 1 + 0.07 * (who["curl"] > 0.55) * np.cos(np.arange(19) * math.pi)
    wide, high = who["cheek"] + 0.4 * who["hair_volume"], who["forehead"] + who["hair_volume"]
    outer = np.stack([wide * np.cos(angle) * curls, high * np.sin(angle) * curls - 0.05], axis=1)
    x = who["cheek"] * np.linspace(1.0, -1.0, 15)
    parting = who["parting"] + how["combed"]
    edge = who["hairline"] + who["fringe"] * np.abs(x - parting) + 0.45 * (x / who["cheek"]) ** 4
    edge = edge + 0.03 * (who["curl"] > 0.55) * np.cos(np.arange(15) * math.pi)
    canvas.shape(np.concatenate([outer, np.stack([x, edge], axis=1)]), canvas.hair, 0.08)
    gloss = np.stack([x[4:11] * 0.8, edge[4:11] - 0.2], axis=1)
    canvas.line(gloss, _shade(canvas.hair, 1.35), 0.03, 0.08)


def _accessories(canvas: Canvas) -> None:
    """What hides parts of a face in some pictures: glasses, scarf, hat, a hand or another thing in front."""
    who, how = canvas.who, canvas.how
    colour = tuple(canvas.rng.integers(15, 230, size=3).tolist())
    if how["glasses"] > 0.86:
        fill = (20, 20, 24, 200) if how["glasses"] > 0.96 else (190, 210, 220, 50)
        for side in (-1, 1):
            ring = _CIRCLE * (0.22, 0.16) + (side * who["eye_gap"], who["eye_y"] + 0.03)
            canvas.shape(ring, fill, 0.62)
            canvas.line(np.concatenate([ring, ring[:1]]), (30, 26, 26), 0.03, 0.62)
        canvas.line(_points(-0.1, who["eye_y"], 0.1, who["eye_y"]), (30, 26, 26), 0.03, 0.66)
    if how["scarf"] > 0.94:
        y = who["nose_y"] + 0.5 * who["mouth_drop"]
        canvas.shape(_points(-0.95, y + 0.1, 0.0, y, 0.95, y + 0.1, 1.1, 1.6, -1.1, 1.6), colour, 0.1)
    if how["hat"] > 0.93:
        y = who["hairline"] + 0.12
        canvas.shape(_points(-0.95, y, -0.85, -1.3, 0.85, -1.3, 0.95, y), colour, 0.05)
    if how["blob"] > 0.88:
        canvas.oval((how["blob_x"], how["blob_y"]), (how["blob_size"], 0.8 * how["blob_size"]), colour, 0.4, 0.3)


def _light(pixels: np.ndarray, how: Traits, rng: np.random.Generator) -> np.ndarray:
    """Directed light, exposure, colour of the light, sensor noise: (H, W, 3) float32 0..255 -> uint8."""
    size = len(pixels)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = math.cos(how["light_angle"]) * axis[None, :] + math.sin(how["light_angle"]) * axis[:, None]
    tint = np.array([1 + how["tint_red"], 1.0, 1 + how["tint_blue"]], dtype=np.float32)
    gain = np.exp(how["exposure"] + how["light"] * ramp)[..., None] * tint
    lit = 255.0 * (np.minimum(pixels * gain, 255.0) / 255.0) ** math.exp(how["gamma"])
    lit += rng.standard_normal(lit.shape, dtype=np.float32) * how["noise"]
    return np.clip(lit, 0, 255).astype(np.uint8)


def _points(*flat: float) -> np.ndarray:
    return np.array(flat).reshape(-1, 2)


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(channel * factor)) for channel in colour[:3])


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return tuple(int((1 - share) * a + share * b) for a, b in zip(first, second, strict=True))


def _mix_many(palette: tuple[Colour, ...], position: float, offset: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Colour:
    """Piecewise linear through the palette, position in [0, 1]."""
    place = min(position, 0.9999) * (len(palette) - 1)
    mixed = _mix(palette[int(place)], palette[int(place) + 1], place % 1)
    return tuple(max(0, min(255, int(channel + move))) for channel, move in zip(mixed, offset, strict=True))
