"""Measures the cascade. One program per question:

python -m perf              how fast is my repository? (perf_analyzer)
python -m perf.compare      against FastAPI, other topologies, flat graphs and no server at all
python -m perf.waterfall    where does the time of a request go?
python -m perf.scaling      how does cost grow with items, candidates, batches and processes?
python -m perf.roofline     how far is each stage from what the hardware allows?
python -m perf.split        what does taking a flat graph apart save?
python -m perf.own          do a team's own models answer as its own code does? (make own)
python -m perf.quality      does every stage make the list better? (make quality)
python -m perf.zoo          which model is best on what, and what does it cost? (make zoo)
python -m perf.suite        all of these on one catalogue (make perf)
python -m perf.demo         train, export, serve, ask and measure (make demo)
python -m perf.report       perf/report.md from the lines in perf/results
python -m perf.fixture      checkpoints of any size to measure with

`perf/tried.md` lists what was tried and did not pay. To see what a process of the server is busy
with, use py-spy: `py-spy top --pid PID`, or `py-spy record` for a flame graph.
"""
