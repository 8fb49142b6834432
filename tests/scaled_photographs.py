"""The photographs of tiny configs, decoded and scaled once by the fork server of `program`, for all its processes."""

from unittest import mock

import program

from datamodules import SamplePhotos
from datamodules.images import sample_photos

with mock.patch.object(sample_photos, "_scaled", program._scaled_once):
    SamplePhotos(size=16, scales=[1.0]).setup("fit")
