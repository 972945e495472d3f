"""Will it fit, how many identities would, and what does a step cost at least: asked before the run is queued.

python launch/plan.py configs/webface42m_adadistill_8gpu.toml --identities 2000000 --ranks 8 --device a100-80
python launch/plan.py configs/ms1mv2_adadistill.toml --identities 85742 --memory 24GB student.centres.store=bf16
python launch/plan.py configs/webface42m_adadistill_8gpu.toml student.centres.store=int8 --memory 80GB

The last one, without data and --identities, asks how many identities there could be.
"""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.plan import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
