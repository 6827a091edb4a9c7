"""Serial line, socket and console: how people and programs talk to the agent, and who may what."""
