"""nsqtools: archive NSQ topics, replay them, and run the broker itself."""

__version__ = "0.1.0"
