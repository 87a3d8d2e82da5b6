"""What the app does by itself from its start to its end, and what it says about its state."""
