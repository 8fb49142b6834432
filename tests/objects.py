"""Scenes of simple objects, and models with closed forms, for tests."""

import torch
from coordinates import pixel_rays

from composers import Composer, Refinement
from composers.inference import LearnedStart, TorchOptimizer
from composers.latents import Direct
from composers.networks import CoordinateNetwork, TensorSpec
from composers.rendering import LightFieldRenderer, VolumeRenderer
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import Rays
from datamodules.spec import DataSpec
from modalities import PosedViews


class Fields(CoordinateNetwork):
    """A closed-form network: a ball with a pole on top, red towards +x and blue towards -x."""

    coord_dim, value_dim, floats_per_coord = 3, 4, 64

    def __init__(self):
        super().__init__()
        self.slots = {"radius": TensorSpec((1,), lambda: torch.full((1,), 0.5))}

    def forward(self, coords, modulations):
        """Return the values of the field."""
        return self.bind(modulations)(coords)

    def bind(self, modulations):
        """Return the field of balls whose radii are the modulations ``(B, 1)``."""
        radius = modulations["radius"]

        def field(points):
            points = points.expand(len(radius), -1, -1) if points.dim() == 2 else points
            x, y, z = points.unbind(-1)
            ball = radius - points.norm(dim=-1)
            pole = torch.minimum(0.1 - torch.stack((x, y), -1).norm(dim=-1), torch.minimum(z, 1.2 - z))
            green = torch.where(pole > ball, 6.0, -6.0)
            return torch.stack((6 * x, green, -6 * x, 200 * torch.maximum(ball, pole)), dim=-1)

        return field


class LineFields(Fields):
    """A closed-form network of light fields: red for rays that point upwards, whatever the radius."""

    coord_dim, value_dim = 6, 3

    def bind(self, modulations):
        """Return the field of lines."""
        radius = modulations["radius"].unsqueeze(-1)
        return lambda lines: lines[..., 2:3] * torch.tensor([50.0, 0, 0]) + 0 * radius


class Balls(Composer):
    """A composer that adapts the radius of a ball and always predicts 0.5."""

    def __init__(self, renderer=None, steps=0):
        renderer = renderer or VolumeRenderer(near=2.0, far=6.0, samples_per_ray=32)
        network = LineFields() if isinstance(renderer, LightFieldRenderer) else Fields()
        rule = TorchOptimizer(lambda latents: torch.optim.Adam(latents, lr=0.05))
        refinement = Refinement(steps, rule, report=[], starts=["prediction"])
        super().__init__(network, Direct(), LearnedStart(), refinement=refinement, renderer=renderer)


def radius_of(*radii):
    """Return the modulations of balls of these radii."""
    return {"radius": torch.tensor(radii).unsqueeze(-1)}


def ball(composer, radius):
    """Return a composer, and its reconstruction of one ball."""
    with torch.no_grad():
        return composer, composer.reconstruction(radius_of(radius))


def scene_batch(radii=(0.8,), views=1, queries=2, size=16, names=None, known=True):
    """Return an evaluation batch of balls, with cameras around them."""
    poses = orbit(views + queries, 4.0)
    intrinsics = centred_intrinsics(torch.full((views + queries, 2), 1.2 * size), (size, size))
    rays = pixel_rays(poses, intrinsics, (size, size))  # (V, H W, 6)
    with torch.no_grad():
        values = Balls().render(radius_of(*radii), rays.flatten(0, 1))  # (B, V H W, 3)
    images = values.unflatten(1, (-1, size, size)).movedim(-1, 2)
    count = len(radii)
    cameras = (part[:views].expand(count, *part[:views].shape) for part in (poses, intrinsics))
    signal = Views(images[:, :views], *cameras)
    support, query = (half.flatten(0, 1).expand(count, -1, -1) for half in (rays[:views], rays[views:]))
    num_support = views * size * size
    observation = Observation(signal, Samples(support, values[:, :num_support]))
    target = Samples(query, values[:, num_support:] if known else None)
    return CoordinateBatch(observation, target, (queries, size, size), names or [f"ball.{i:03d}" for i in range(count)])


class Scenes(CoordinateDataModule):
    """Minimal data module of scenes for figures and predictions."""

    modality = PosedViews()
    spec = DataSpec(Rays(2.0, 6.0), 3, (1, 3, 16, 16), modality)
