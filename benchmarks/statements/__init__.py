"""What a number lets one say: stated against measured, over trainings of 300 digits."""
