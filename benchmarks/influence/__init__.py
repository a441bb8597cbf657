"""Look-ahead beside retraining: whose values agree with training again without a sample."""
