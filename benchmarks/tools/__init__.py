"""Other tools on our trainings: the same model, the same retrainings, one machine, one command."""
