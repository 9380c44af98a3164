"""What others see of a running service: over HTTP, as metrics, as a service manager does."""
