"""What a test's plugins register is gone after it."""

from plugins import own_registries  # noqa: F401
