"""The OpenAI surface: what OpenAI's clients ask of `/v1`, answered by providers and by runs of agents."""
