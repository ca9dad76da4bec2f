"""Process managers: they look at where a job, a sandbox, a snapshot stands and do what comes next.

Each is level-triggered: ``pump`` loads the aggregates, and whatever it orders or records has an id that follows from (process, step,
attempt). So a pump that runs twice, after a crash, by a redelivered event or by the watchdog, changes nothing (design.md §5).
"""
