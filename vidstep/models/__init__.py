"""Networks: one video DiT, its conditioning, its layout."""
