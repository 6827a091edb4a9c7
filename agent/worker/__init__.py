"""The worker: one run in a forked child, in plain synchronous order, killable at any instant.

Whatever it leaves behind is what core/decide expects to find. It tells its supervisor over a pipe
and writes no diary. A run reads from `start` through `migrating` to the switch in `run`.
"""
