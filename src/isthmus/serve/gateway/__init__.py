"""The gateway: OpenAI's API for clients, the registry for workers, and what follows a failure."""
