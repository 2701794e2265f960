"""The version, alone in its file so that the build and the kernel cache can read it."""

__version__ = "0.1.0"
