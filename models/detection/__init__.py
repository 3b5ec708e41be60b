"""Networks that find cells in fields."""
