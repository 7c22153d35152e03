"""What the product's costly steps take, side by side with how they were done before or are usually done.

`python -m benchmarks.speed --model FOLDER --data FOLDER` runs every measurement on one thread. Seconds are CPU
seconds of the process, so that other work on the machine disturbs them less than wall-clock seconds.
"""
