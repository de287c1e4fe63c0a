"""A node pack for the tests alone, without nodes: ComfyUI runs its ``prestartup_script.py`` before anything else."""

NODE_CLASS_MAPPINGS = {}
