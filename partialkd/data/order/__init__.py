"""Orders, plans and read-ahead decide which record comes when."""
