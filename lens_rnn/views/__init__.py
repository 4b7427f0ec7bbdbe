"""Views into a recurrent model: which earlier tokens a block reads, and which tokens a prediction comes from."""
