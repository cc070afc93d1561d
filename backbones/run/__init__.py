"""A run: an experiment, trained in a folder.

run.py          from the start, or a resume, to the result
loop.py         the steps, and logging, evaluation and checkpoints in between; rewind.py: going back before a bad step
run_dir.py      the folder of a run; config.py, provenance.py, lock.py and files.py: what is in it, how it is written
resume.py       what a resumed run may change; start_weights.py: weights that a new one starts from
preemption.py   signals that stop a run
run_log.py      what a run records: metric_writer.py, metric_lines.py, trackers.py, spikes.py, step_profile.py
checkpoint/     the state on the disk
analysis/       trained models on images
export/         weights and programs for others
report/         a page about several runs
sweep/          runs that differ in some options
"""
