"""Self-attention: every token asks all others."""
