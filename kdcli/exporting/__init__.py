"""Exports students: targets write files, runtimes execute them, and the artifacts are compared with the student."""
