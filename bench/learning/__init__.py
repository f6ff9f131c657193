"""Learning studies: methods x seeds under one budget, and the figure and table they give.

python -m bench.learning STUDY
"""
