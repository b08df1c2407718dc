"""What a test registers is gone after it."""

from plugins import own_registries  # noqa: F401
