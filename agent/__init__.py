"""posagent: upgrades a payment terminal's data at boot and cannot lose a sale."""

__version__ = "0.1.0"
