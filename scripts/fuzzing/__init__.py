"""Hostile inputs for kin, made from seeds, and the judgement of what kin does with them: see ../fuzz.py."""
