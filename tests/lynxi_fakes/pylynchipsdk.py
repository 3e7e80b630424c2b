"""A fake of Lynxi's runtime library: what LynxiTech/BIDL calls to forget states (lynadapter/lyn_sdk_model.py)."""

import os

from lyngor import log

STATES = {}  # of the fake model; lynpy.py hands it over


def lyn_set_current_context(context):
    log("lyn_set_current_context", context)
    return 0


def lyn_model_reset_async(stream, model):
    log("lyn_model_reset_async", stream, model)
    STATES.clear()
    return int(os.environ.get("FAKE_LYNXI_FAILS", "0"))
