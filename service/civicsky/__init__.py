"""civicsky holds Bluesky's firehose and labels its English posts; the README has the picture."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is wanted: that costs a tenth of what `--help` does."""
        if name != "__version__":
            raise AttributeError(f"module 'civicsky' has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415  (see above)

        globals()[name] = version("civicsky")
        return globals()[name]
