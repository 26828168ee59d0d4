"""How a phase's ranks are started, stopped and found again, and what became of them."""
