"""Which members are asked about which inputs, and what becomes of what they say."""
