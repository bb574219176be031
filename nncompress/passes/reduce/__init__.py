"""`reduce`: fewer nodes and lower ranks, chosen and repaired together."""
