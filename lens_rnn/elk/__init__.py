"""Eliciting latent knowledge: quirky models, probes of what they know, and transfers from Alice's context to Bob's."""
