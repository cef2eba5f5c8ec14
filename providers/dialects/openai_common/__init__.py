"""What chat, completions and embeddings of the OpenAI family share: usage, errors, the tap. No dialect by itself."""
