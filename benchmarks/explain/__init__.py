"""Whether `inrun.explain` names what was planted: the step, the rows and the source."""
