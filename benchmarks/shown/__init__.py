"""Real runs whose words and pictures the pages of docs/ show."""
