"""Callbacks for training frameworks; each module needs its framework, `import inrun` needs none."""
