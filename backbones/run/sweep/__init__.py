"""A sweep: runs of one experiment that differ in some options, and one table of their results.

axes.py      which combinations of values: a grid, or random draws
members.py   the sweep and its members, and the folder that holds them
choose.py    which way of running them is the fastest
jobs.py      one after another, or in several processes
vmapped.py   all of them in one vmapped step
run_sweep.py rungs of successive halving, from the first to the table
table.py     results of the members; plot.py draws them
"""
