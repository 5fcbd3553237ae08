"""Export: targets write files, runtimes execute them, artifacts are compared with the student."""
