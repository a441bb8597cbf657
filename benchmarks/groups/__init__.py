"""Do sums of values say what happens when a whole source of samples goes?"""
