"""Do sums of values say what a training on half of the data does?"""
