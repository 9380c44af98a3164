"""civicsky holds Bluesky's firehose and labels its English posts; the README has the picture."""

from importlib.metadata import version

__version__ = version("civicsky")
