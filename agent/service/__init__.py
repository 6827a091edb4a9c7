"""The supervisor's floor: `supervisor` runs a job, `watch` watches its worker, `chronicle` keeps
the diary, `verdict` says how it ended.
"""
