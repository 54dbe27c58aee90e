"""From a question to token ids: the chat template, and where the parts of a prompt lie."""
