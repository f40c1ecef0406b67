"""The files, photos and web servers of the tests of data, for those of storage, too."""

from tests.data.conftest import good_sample, jpeg_of, json_of, noise, tar_of, web

__all__ = ["good_sample", "jpeg_of", "json_of", "noise", "tar_of", "web"]
